#include "server/access/access.h"

#include <string>

#include "absl/strings/match.h"

namespace expertd {
namespace {

// As gRPC writes peers: "ipv4:127.0.0.1:40000", "ipv6:%5B::1%5D:40000", "unix:...".
bool IsLocalPeer(const std::string& peer) {
  for (const char* local : {"ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:", "unix-abstract:"}) {
    if (absl::StartsWith(peer, local)) return true;
  }
  return false;
}

}  // namespace

absl::StatusOr<Caller> Access::Admit(const grpc::ServerContextBase& context, Role role) const {
  Caller caller = Identify(context);
  if (role == Role::kInfer ? caller.may_infer : caller.may_admin) return caller;
  return absl::PermissionDeniedError(role == Role::kInfer ? "the infer role is needed" : "the admin role is needed");
}

Caller Access::Identify(const grpc::ServerContextBase& context) const {
  return {.may_infer = true, .may_admin = options_.local_admin && IsLocalPeer(context.peer())};
}

}  // namespace expertd
