#include "server/listeners.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/impl/server_builder_option.h>
#include <netdb.h>
#include <prometheus/exposer.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <exception>
#include <thread>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
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

absl::Status CannotListen(absl::string_view address, absl::string_view reason) {
  return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", reason));
}

// Connects to HOST:PORT and leaves.
void Knock(const std::string& address) {
  const std::size_t colon = address.rfind(':');
  if (colon == std::string::npos) return;
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') host = host.substr(1, host.size() - 2);
  addrinfo hints = {};
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  if (getaddrinfo(host.c_str(), address.c_str() + colon + 1, &hints, &found) != 0) return;
  const int fd = socket(found->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd >= 0) {
    static_cast<void>(connect(fd, found->ai_addr, found->ai_addrlen));
    close(fd);
  }
  freeaddrinfo(found);
}

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

absl::StatusOr<GrpcListener> Listen(const GrpcListenerOptions& options, grpc::Service* service) {
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  GrpcListener listener;
  grpc::ServerBuilder builder;
  Configure(options, builder);
  if (service == nullptr || !IsLocalAddress(options.address)) builder.SetOption(std::make_unique<WithoutPlugins>());
  if (service != nullptr) {
    builder.RegisterService(service);
  } else {
    listener.rest = std::make_unique<grpc::CallbackGenericService>();
    builder.RegisterCallbackGenericService(listener.rest.get());
  }
  int port = 0;
  builder.AddListeningPort(options.address, grpc::InsecureServerCredentials(), &port);
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

absl::StatusOr<std::unique_ptr<MetricsListener>> MetricsListener::Start(const std::string& address,
                                                                        const Metrics& metrics) {
  try {
    auto exposer = std::make_unique<prometheus::Exposer>(address, 1);
    for (const auto& collectable : metrics.collectables()) exposer->RegisterCollectable(collectable);
    const std::vector<int> ports = exposer->GetListeningPorts();
    std::string bound = WithPort(address, ports.empty() ? 0 : ports.front());
    return std::unique_ptr<MetricsListener>(new MetricsListener(std::move(exposer), std::move(bound)));
  } catch (const std::exception&) {  // CivetWeb says no more than that it failed
    return CannotListen(address, "in use, or no address of this machine");
  }
}

MetricsListener::MetricsListener(std::unique_ptr<prometheus::Exposer> exposer, std::string address)
    : exposer_(std::move(exposer)), address_(std::move(address)) {}

// CivetWeb looks whether it should stop every two seconds, and when somebody connects.
MetricsListener::~MetricsListener() {
  std::atomic<bool> stopped = false;
  std::thread stop([&] {
    exposer_.reset();
    stopped = true;
  });
  while (!stopped) {
    Knock(address_);
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  stop.join();
}

std::string WithPort(absl::string_view address, int port) {
  if (!absl::EndsWith(address, ":0")) return std::string(address);
  return absl::StrCat(address.substr(0, address.size() - 1), port);
}

}  // namespace expertd
