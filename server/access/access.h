// Who may do what. Every handler of ours asks here first.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "server/access/token_table.h"
#include "server/caller.h"

namespace expertd {

enum class Role { kInfer, kAdmin };

// Where callers come from: the first that is set decides alone.
struct AccessOptions {
  // Every call needs a bearer token; it names roles and tenant.
  std::shared_ptr<const TokenStore> tokens;
  // Every connection has a verified client certificate; its first URI, else DNS name, else common name is the tenant
  // and may infer. These may administer too.
  bool client_certificates = false;
  std::vector<std::string> admin_identities;
  // Otherwise everybody is kDefaultTenant and may infer; with this, peers on this machine may administer too.
  bool local_admin = false;
};

// Whether a peer, as gRPC writes it, is on this machine: "ipv4:127.0.0.1:40000", "ipv6:%5B::1%5D:40000", "unix:...".
bool IsLocalPeer(const std::string& peer);

// Thread-safe.
class Access {
 public:
  explicit Access(AccessOptions options) : options_(std::move(options)) {}

  // The caller behind `context`, who has `role`. Unauthenticated: no credential, or an unknown one; PermissionDenied:
  // the role is missing. Messages repeat nothing that the caller sent.
  absl::StatusOr<Caller> Admit(const grpc::ServerContextBase& context, Role role) const;

 private:
  absl::StatusOr<Caller> Identify(const grpc::ServerContextBase& context) const;
  absl::StatusOr<Caller> FromToken(const grpc::ServerContextBase& context) const;
  absl::StatusOr<Caller> FromCertificate(const grpc::ServerContextBase& context) const;

  const AccessOptions options_;
};

}  // namespace expertd
