// Many requests in flight on one gRPC stream, each answered through its own callback.
#pragma once

#include <grpcpp/channel.h>

#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/connection.h"
#include "client/cpp/messages.h"
#include "client/cpp/retry.h"

namespace expertd::client {

struct StreamOptions {
  int max_in_flight = 64;     // at least 1
  std::int64_t max_rows = 0;  // of a request; 0: any number
  TokenSource token;
  std::shared_ptr<RetryBudget> retries;  // null: none. May be shared
};

// Thread-safe. Open from construction until the server ends it, Close, or destruction.
class Stream {
 public:
  // The answer, or the request's own error; when the stream has ended, its status. Called exactly once, from a thread
  // of gRPC's; must not block, close or destroy the stream. It may send the next request.
  using Done = std::function<void(absl::StatusOr<Answer>)>;

  // See Client::OpenStream. A token that cannot be had ends the stream with its error.
  Stream(const std::shared_ptr<grpc::Channel>& channel, StreamOptions options);
  // Cancels what is unanswered and waits until every callback has returned.
  ~Stream();

  // Sends the request under an id of the stream's own (head.request_id() is ignored) and returns the id. Blocks while
  // max_in_flight requests are unanswered, but never inside a callback of this stream, where waiting for answers would
  // be waiting for itself. When the stream has ended or is closed: its status; when there are more rows than max_rows:
  // InvalidArgument; and then `done` is not called. A request that is refused for now is sent again as the retries say,
  // within head.timeout_us() if that is set.
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
