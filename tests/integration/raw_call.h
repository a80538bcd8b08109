// Calls with any bytes at all, and a plain HTTP GET.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/completion_queue.h>
#include <grpcpp/generic/generic_stub.h>

#include <memory>
#include <optional>
#include <string>

namespace expertd::testing {

inline constexpr char kForwardMethod[] = "/expertd.v1.Expertd/Forward";
inline constexpr char kForwardStreamMethod[] = "/expertd.v1.Expertd/ForwardStream";

// A plaintext channel of its own connection, without message limits.
std::shared_ptr<grpc::Channel> RawChannel(const std::string& address);

struct RawReply {
  grpc::Status status;
  std::string bytes;
};

// One unary call with a deadline of 30 s.
RawReply RawUnary(const std::shared_ptr<grpc::Channel>& channel, const std::string& method, const std::string& bytes);

// One bidirectional call with a deadline of 30 s; every operation blocks.
class RawStream {
 public:
  RawStream(const std::shared_ptr<grpc::Channel>& channel, const std::string& method);
  ~RawStream();

  bool Write(const std::string& bytes);
  // Nothing when the server sends no more.
  std::optional<std::string> Read();
  bool WritesDone();
  // After the last Read.
  grpc::Status Finish();
  void Cancel() { context_.TryCancel(); }

 private:
  bool Wait();

  grpc::ClientContext context_;
  grpc::CompletionQueue queue_;
  std::unique_ptr<grpc::GenericClientAsyncReaderWriter> call_;
  bool finished_ = false;
};

// Status line, headers and body; empty when there is no answer.
std::string HttpGet(const std::string& address, const std::string& path);

// The value of a sample such as `name{label="value"}` in a Prometheus text; nothing when it is not there.
std::optional<double> MetricValue(const std::string& text, const std::string& sample);

}  // namespace expertd::testing
