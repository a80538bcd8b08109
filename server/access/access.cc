#include "server/access/access.h"

#include <grpcpp/security/auth_context.h>

#include <algorithm>

#include "absl/strings/match.h"

namespace expertd {
namespace {

constexpr absl::string_view kScheme = "bearer ";  // in any case, as RFC 7235 has it

}  // namespace

bool IsLocalPeer(const std::string& peer) {
  for (const char* local : {"ipv4:127.", "ipv6:[::1]:", "ipv6:%5B::1%5D:", "unix:", "unix-abstract:"}) {
    if (absl::StartsWith(peer, local)) return true;
  }
  return false;
}

absl::StatusOr<Caller> Access::Admit(const grpc::ServerContextBase& context, Role role) const {
  absl::StatusOr<Caller> caller = Identify(context);
  if (!caller.ok() || (role == Role::kInfer ? caller->may_infer : caller->may_admin)) return caller;
  return absl::PermissionDeniedError(role == Role::kInfer ? "the infer role is needed" : "the admin role is needed");
}

absl::StatusOr<Caller> Access::Identify(const grpc::ServerContextBase& context) const {
  if (options_.tokens != nullptr) return FromToken(context);
  if (options_.client_certificates) return FromCertificate(context);
  return Caller{.may_infer = true, .may_admin = options_.local_admin && IsLocalPeer(context.peer())};
}

absl::StatusOr<Caller> Access::FromToken(const grpc::ServerContextBase& context) const {
  const auto [first, last] = context.client_metadata().equal_range("authorization");
  if (first == last) return absl::UnauthenticatedError("authorization: a bearer token is needed");
  if (std::next(first) != last) return absl::UnauthenticatedError("authorization: given more than once");
  absl::string_view value(first->second.data(), first->second.size());
  if (!absl::StartsWithIgnoreCase(value, kScheme)) {
    return absl::UnauthenticatedError("authorization: the scheme is not Bearer");
  }
  value.remove_prefix(kScheme.size());
  std::optional<Caller> caller = options_.tokens->current()->Find(value);
  if (!caller) return absl::UnauthenticatedError("authorization: the token is not known here");
  return *std::move(caller);
}

absl::StatusOr<Caller> Access::FromCertificate(const grpc::ServerContextBase& context) const {
  const std::shared_ptr<const grpc::AuthContext> peer = context.auth_context();
  if (peer == nullptr || !peer->IsPeerAuthenticated()) {
    return absl::UnauthenticatedError("a client certificate is needed");
  }
  // gRPC's peer identity: the subject's alternative names, else its common name.
  const std::vector<grpc::string_ref> names = peer->GetPeerIdentity();
  if (names.empty() || names.front().empty()) {
    return absl::UnauthenticatedError("the client certificate names nobody: it has no alternative or common name");
  }
  Caller caller = {.tenant = std::string(names.front().data(), names.front().size()), .may_infer = true};
  const std::vector<std::string>& admins = options_.admin_identities;
  caller.may_admin = std::find(admins.begin(), admins.end(), caller.tenant) != admins.end();
  return caller;
}

}  // namespace expertd
