// What ForwardStream is to a gRPC stream, for a doorbell ring: its messages become requests of the one request path,
// and the answers go back into the ring.
#pragma once

#include <grpcpp/support/byte_buffer.h>

#include <cstdint>
#include <memory>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"
#include "server/caller.h"
#include "server/lane/server_ring.h"
#include "server/request_path.h"

namespace expertd {

// Thread-safe. Lives until the ring is stopped and its last request was answered, whichever is later.
class RingRequests : public std::enable_shared_from_this<RingRequests> {
 public:
  // `path` must outlive it.
  RingRequests(RequestPath& path, Caller caller, std::shared_ptr<ServerRing> ring)
      : path_(path), caller_(std::move(caller)), ring_(std::move(ring)) {}

  // One message that was taken from the ring. A message that cannot be decoded is answered with an error, under the id
  // 0.
  void Handle(absl::string_view message);
  // The peer is gone: what is in flight is cancelled, as is what comes.
  void CancelAll();

 private:
  void Submit(std::uint64_t id, absl::StatusOr<ForwardHead> head, Slices message, Clock::time_point time);
  void CancelRequest(std::uint64_t id);
  void Answered(std::uint64_t id, const absl::Status& status, const grpc::ByteBuffer& message);
  void AnswerError(std::uint64_t id, const absl::Status& status);

  RequestPath& path_;
  const Caller caller_;
  const std::shared_ptr<ServerRing> ring_;

  Mutex mutex_;
  bool gone_ ABSL_GUARDED_BY(mutex_) = false;
  // By request id; no job id yet while Submit is at work.
  absl::flat_hash_map<std::uint64_t, std::optional<Scheduler::JobId>> in_flight_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
