// Many requests in flight on one gRPC stream, each answered through its own callback.
#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/messages.h"

namespace expertd::client {

// Thread-safe. Open from construction until the server ends it, Close, or destruction.
class Stream {
 public:
  // The answer, or the request's own error; when the stream has ended, its status. Called exactly once, from a thread
  // of gRPC's; must not block, close or destroy the stream. It may send the next request.
  using Done = std::function<void(absl::StatusOr<Answer>)>;

  // See Client::OpenStream. max_in_flight >= 1.
  Stream(const std::shared_ptr<grpc::Channel>& channel, int max_in_flight);
  // Cancels what is unanswered and waits until every callback has returned.
  ~Stream();

  // Sends the request under an id of the stream's own (head.request_id() is ignored) and returns the id. Blocks while
  // max_in_flight requests are unanswered, but never inside a callback of this stream, where waiting for answers would
  // be waiting for itself. When the stream has ended or is closed: its status, and `done` is not called.
  absl::StatusOr<std::uint64_t> Forward(Request request, Done done);

  // Withdraws a request; its callback still comes, with CANCELLED or with an answer that was on its way.
  void Cancel(std::uint64_t id);

  // Sends nothing more, waits for all answers and returns the stream's status. Idempotent.
  absl::Status Close();

  // Ends the call at once, without waiting: what is unanswered gets CANCELLED.
  void Abort();

  // Whether the server or the transport has ended it.
  bool ended() const;

 private:
  class Reactor;
  std::unique_ptr<Reactor> reactor_;
};

}  // namespace expertd::client
