// The sockets that a server answers on.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/metrics.h"

namespace prometheus {
class Exposer;
}

namespace expertd {

struct GrpcListenerOptions {
  std::string address;
  std::int64_t max_message_bytes = 4 << 20;  // in either direction
  std::int64_t max_streams_per_connection = 256;
};

struct GrpcListener {
  // Answers UNIMPLEMENTED where there is no service: gRPC starts no server without one.
  std::unique_ptr<grpc::CallbackGenericService> rest;
  std::unique_ptr<grpc::Server> server;
  std::string address;  // as bound

  // Cancels what is in progress after a moment in which calls can still be refused, and waits for it.
  void Stop();
};

// Starts a plaintext server for `service`, or for nothing but health when null. Reflection is served on local addresses
// only. Unavailable when the address cannot be bound, also when another process has it.
absl::StatusOr<GrpcListener> Listen(const GrpcListenerOptions& options, grpc::Service* service);

// Serves /metrics until it is destroyed.
class MetricsListener {
 public:
  // Unavailable when the address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsListener>> Start(const std::string& address, const Metrics& metrics);
  ~MetricsListener();

  const std::string& address() const { return address_; }  // as bound

 private:
  MetricsListener(std::unique_ptr<prometheus::Exposer> exposer, std::string address);

  std::unique_ptr<prometheus::Exposer> exposer_;
  const std::string address_;
};

// `address` with `port` in place of port 0.
std::string WithPort(absl::string_view address, int port);

}  // namespace expertd
