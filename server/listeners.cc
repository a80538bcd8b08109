#include "server/listeners.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "server/options.h"

namespace expertd {
namespace {

// Linking the reflection library adds it to every server of the process.
class WithoutPlugins : public grpc::ServerBuilderOption {
 public:
  void UpdateArguments(grpc::ChannelArguments*) override {}
  void UpdatePlugins(std::vector<std::unique_ptr<grpc::ServerBuilderPlugin>>* plugins) override { plugins->clear(); }
};

// Reflection is synchronous: its threads are the only ones that calls can multiply.
constexpr int kReflectionThreads = 4;

// A call that arrives while the server stops is still told why (UNAVAILABLE) instead of being cut off (CANCELLED).
constexpr std::chrono::milliseconds kLastRefusals{250};

void Configure(const GrpcListenerOptions& options, grpc::ServerBuilder& builder) {
  const int message_limit = static_cast<int>(options.max_message_bytes);
  builder.SetMaxReceiveMessageSize(message_limit);
  builder.SetMaxSendMessageSize(message_limit);
  // A small compressed message can grow a thousandfold past every limit: refused (UNIMPLEMENTED).
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_DEFLATE, false);
  builder.SetCompressionAlgorithmSupportStatus(GRPC_COMPRESS_GZIP, false);
  builder.SetDefaultCompressionAlgorithm(GRPC_COMPRESS_NONE);
  // A second server on this port must fail, not share it.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, static_cast<int>(options.max_streams_per_connection));
  // A peer that is gone without a word is noticed, and the rows of its unsent answers are given back.
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
  grpc::ResourceQuota quota("expertd");
  quota.SetMaxThreads(kReflectionThreads);
  builder.SetResourceQuota(quota);
  builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
  builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
}

}  // namespace

absl::StatusOr<GrpcListener> Listen(const GrpcListenerOptions& options, absl::Span<grpc::Service* const> services) {
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  GrpcListener listener;
  grpc::ServerBuilder builder;
  Configure(options, builder);
  if (services.empty() || !IsLocalAddress(options.address)) builder.SetOption(std::make_unique<WithoutPlugins>());
  for (grpc::Service* service : services) builder.RegisterService(service);
  if (services.empty()) {
    listener.rest = std::make_unique<grpc::CallbackGenericService>();
    builder.RegisterCallbackGenericService(listener.rest.get());
  }
  int port = 0;
  listener.credentials = options.credentials ? options.credentials : grpc::InsecureServerCredentials();
  builder.AddListeningPort(options.address, listener.credentials, &port);
  listener.server = builder.BuildAndStart();
  if (listener.server == nullptr || port <= 0) {
    return CannotListen(options.address, "in use, or no address of this machine");
  }
  listener.address = WithPort(options.address, port);
  return listener;
}

void GrpcListener::Stop() {
  if (server) server->Shutdown(std::chrono::system_clock::now() + kLastRefusals);
  server.reset();
}

std::string WithPort(absl::string_view address, int port) {
  if (!absl::EndsWith(address, ":0")) return std::string(address);
  return absl::StrCat(address.substr(0, address.size() - 1), port);
}

std::pair<std::string, std::string> SplitHostPort(absl::string_view address) {
  const std::size_t colon = address.rfind(':');
  absl::string_view host = colon == absl::string_view::npos ? "" : address.substr(0, colon);
  const absl::string_view port = colon == absl::string_view::npos ? address : address.substr(colon + 1);
  if (absl::ConsumePrefix(&host, "[")) absl::ConsumeSuffix(&host, "]");
  return {std::string(host), std::string(port)};
}

absl::Status CannotListen(absl::string_view address, absl::string_view reason) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", reason));
}

}  // namespace expertd
