#include "server/forward_stream.h"

#include <grpcpp/support/slice.h>

#include <utility>

#include "server/error_answer.h"

namespace expertd {
namespace {

grpc::ByteBuffer ErrorMessage(std::uint64_t request_id, const absl::Status& status) {
  const grpc::Slice slice(EncodeError(request_id, status));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

void ForwardStream::Handle(const grpc::ByteBuffer& message) {
  const Clock::time_point time = Clock::now();
  const MessageSlices slices(message);
  std::uint64_t request_id = 0;
  bool decodable = true;
  absl::StatusOr<StreamHead> head = ScanStreamRequest(slices, &request_id, &decodable);
  if (!decodable) return Stop(head.status());
  if (head.ok() && head->cancel_request_id) return CancelRequest(*head->cancel_request_id);
  absl::StatusOr<ForwardHead> forward =
      head.ok() ? std::move(head->forward) : absl::StatusOr<ForwardHead>(head.status());
  Submit(request_id, std::move(forward), slices, time, {},
         [request_id](const absl::Status& status) { return ErrorMessage(request_id, status); });
}

}  // namespace expertd
