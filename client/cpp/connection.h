// How a client reaches its servers: names, encryption, who it is, which replicas it uses.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/client_context.h>
#include <grpcpp/security/credentials.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/retry.h"

namespace expertd::client {

// PEM files; empty: see each.
struct TlsOptions {
  std::string ca_file;           // verifies the server; empty: the system's roots
  std::string certificate_file;  // with key_file: who we are (mutual TLS); empty: nobody
  std::string key_file;
  std::string server_name;  // expected in the server's certificate; empty: the endpoint's host
};

// The bearer token of a call, asked for each call: quick, thread-safe. An error is the call's.
using TokenSource = std::function<absl::StatusOr<std::string>()>;
TokenSource FixedToken(std::string token);
// The file's first line, read again after a second: it may be renewed.
TokenSource TokenFromFile(std::string path);

struct ClientOptions {
  // Whatever gRPC resolves: host:port, unix:..., or dns:///host:port, where every address is a replica: calls go to all
  // of them in turn.
  std::string endpoint = "127.0.0.1:8470";
  // One gRPC channel is one TCP connection (to each replica); large rows want several. Calls go round.
  int connections = 1;
  std::chrono::milliseconds connect_timeout{5000};
  std::optional<TlsOptions> tls;  // absent: plaintext
  TokenSource token;              // null: none. Not over plaintext, except to this machine
  // Uses only replicas that the health service calls ready: not while they load or drain. Without a replica that is
  // ready, calls fail with UNAVAILABLE at once.
  bool health_aware = false;
  RetryPolicy retry;  // nothing is retried unless retry.attempts is more than 1
  // Instead of `tls`: credentials of the caller's own making.
  std::shared_ptr<grpc::ChannelCredentials> credentials;
};

// InvalidArgument naming field, value and limit.
absl::Status Validate(const ClientOptions& options);

// What `tls` and `credentials` say. InvalidArgument: a PEM file cannot be read.
absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> CredentialsOf(const ClientOptions& options);

// A channel that shares its connections with no other. max_message_bytes -1: no limit.
std::shared_ptr<grpc::Channel> MakeChannel(const ClientOptions& options,
                                           const std::shared_ptr<grpc::ChannelCredentials>& credentials,
                                           int max_message_bytes);

// Adds the token to a call that has not begun. The token's error.
absl::Status Authorize(const TokenSource& token, grpc::ClientContext& context);

}  // namespace expertd::client
