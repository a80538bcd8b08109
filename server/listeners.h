// The sockets that a server answers on.
#pragma once

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/grpcpp.h>

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace expertd {

struct GrpcListenerOptions {
  std::string address;
  std::int64_t max_message_bytes = 4 << 20;  // in either direction
  std::int64_t max_streams_per_connection = 256;
  std::int64_t memory_mib = 0;                           // for the transport's buffers; 0: no limit
  std::int64_t max_connection_age_ms = 0;                // 0: no limit
  std::shared_ptr<grpc::ServerCredentials> credentials;  // null: plaintext
};

struct GrpcListener {
  // Answers UNIMPLEMENTED where there is no service: gRPC starts no server without one.
  std::unique_ptr<grpc::CallbackGenericService> rest;
  std::shared_ptr<grpc::ServerCredentials> credentials;  // outlive the server
  std::unique_ptr<grpc::Server> server;
  std::string address;  // as bound

  // Cancels what is in progress after a moment in which calls can still be refused, and waits for it.
  void Stop();
};

// Starts a server for `services`, or for nothing but health when there are none. Reflection is served on local
// addresses only. Unavailable when the address cannot be bound, also when another process has it.
absl::StatusOr<GrpcListener> Listen(const GrpcListenerOptions& options, absl::Span<grpc::Service* const> services);

// `address` with `port` in place of port 0.
std::string WithPort(absl::string_view address, int port);
// "[::1]:80" -> {"::1", "80"}; without a colon: no host.
std::pair<std::string, std::string> SplitHostPort(absl::string_view address);
// Unavailable, as every listener says it.
absl::Status CannotListen(absl::string_view address, absl::string_view reason);

}  // namespace expertd
