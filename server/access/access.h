// Who may do what. Every handler of ours asks here first.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>

#include "absl/status/statusor.h"
#include "server/caller.h"

namespace expertd {

enum class Role { kInfer, kAdmin };

struct AccessOptions {
  // Admin calls of peers on this machine are allowed without a credential.
  bool local_admin = false;
};

// Thread-safe.
class Access {
 public:
  explicit Access(const AccessOptions& options) : options_(options) {}

  // The caller behind `context`, who has `role`. Without authentication everybody is kDefaultTenant and may infer; a
  // peer on loopback or a unix socket is also admin, where that is configured. PermissionDenied: the role is missing.
  absl::StatusOr<Caller> Admit(const grpc::ServerContextBase& context, Role role) const;

 private:
  Caller Identify(const grpc::ServerContextBase& context) const;

  const AccessOptions options_;
};

}  // namespace expertd
