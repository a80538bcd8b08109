#include "server/listeners.h"

#include <chrono>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"

namespace expertd {
namespace {

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
  if (options.max_connection_age_ms > 0) {
    // Told to go at that age; calls have as long again. Our streams end before that by themselves.
    const int age = static_cast<int>(options.max_connection_age_ms);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_MS, age);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, age);
  }
  if (options.memory_mib > 0) {
    grpc::ResourceQuota quota("expertd");
    quota.Resize(static_cast<std::size_t>(options.memory_mib) << 20);
    builder.SetResourceQuota(quota);
  }
}

}  // namespace

absl::StatusOr<GrpcListener> Listen(const GrpcListenerOptions& options, absl::Span<grpc::Service* const> services) {
  GrpcListener listener;
  grpc::ServerBuilder builder;
  Configure(options, builder);
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
