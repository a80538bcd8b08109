// A client of expertd: a few connections to one server, or to all replicas behind a name; unary calls, pipelined
// streams. Plain gRPC underneath. Rows are not copied, neither out nor in.
#pragma once

#include <grpcpp/channel.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/connection.h"
#include "client/cpp/messages.h"
#include "client/cpp/stream.h"
#include "expertd/v1/expertd.pb.h"

namespace expertd::client {

// A call's deadline when none is wanted.
inline constexpr std::chrono::microseconds kNoTimeout = std::chrono::microseconds::max();

// Thread-safe. Streams may outlive the client.
class Client {
 public:
  // From a thread of gRPC's; must neither block nor destroy the client.
  using Done = std::function<void(absl::StatusOr<Answer>)>;

  // Blocks until every connection stands and the server has told its limits, which become the channels' message limits.
  // Unavailable: not within connect_timeout; InvalidArgument: see Validate and CredentialsOf; otherwise what the server
  // answered.
  static absl::StatusOr<std::unique_ptr<Client>> Connect(const ClientOptions& options);

  // Cancels the calls in progress and waits until every callback has returned.
  ~Client();

  // As the server said when the client connected.
  const v1::GetServerInfoResponse& info() const { return info_; }
  int connections() const { return static_cast<int>(channels_.size()); }

  // Blocks. The server's status otherwise.
  absl::StatusOr<v1::ListLayersResponse> ListLayers() const;
  // The standard health service: true for SERVING. `service` is "" (the server), "live" or "<model>/<layer>".
  // NotFound: the server knows no such name.
  absl::StatusOr<bool> IsServing(absl::string_view service = "") const;

  // One unary call; blocks. The deadline is the call's, retries included: the server drops the request when it has
  // passed. InvalidArgument at once when there are more rows than the server takes; otherwise the last attempt's
  // status.
  absl::StatusOr<Answer> Forward(const Request& request, std::chrono::microseconds timeout = kNoTimeout) const;
  // The same without blocking: `done` is called exactly once.
  void ForwardAsync(const Request& request, std::chrono::microseconds timeout, Done done) const;

  // A pipelined stream on the next connection, to one of the replicas; refusals on it are retried as unary calls are.
  // `max_in_flight` <= 0: what the server says it takes. A stream that its server ends (because it drains, say) has to
  // be opened anew.
  std::unique_ptr<Stream> OpenStream(int max_in_flight = 0) const;

  // For generated stubs beside this library.
  std::shared_ptr<grpc::Channel> channel(int index = 0) const { return channels_[static_cast<std::size_t>(index)]; }

 private:
  class Calls;

  explicit Client(const ClientOptions& options);
  const std::shared_ptr<grpc::Channel>& NextChannel() const;

  const TokenSource token_;
  const std::shared_ptr<RetryBudget> retries_;  // shared with the streams, which may outlive us
  v1::GetServerInfoResponse info_;
  std::vector<std::shared_ptr<grpc::Channel>> channels_;
  mutable std::atomic<unsigned> next_{0};
  std::unique_ptr<Calls> calls_;
};

}  // namespace expertd::client
