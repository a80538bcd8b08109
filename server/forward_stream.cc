#include "server/forward_stream.h"

#include <grpcpp/support/slice.h>

#include <optional>
#include <utility>

#include "server/status.h"

namespace expertd {
namespace {

grpc::ByteBuffer ErrorMessage(std::uint64_t request_id, const absl::Status& status) {
  const std::optional<std::chrono::microseconds> after = RetryAfter(status);
  const grpc::Slice slice(
      EncodeErrorResponse(request_id, status, after ? static_cast<std::uint64_t>(after->count()) : 0));
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
