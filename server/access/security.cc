#include "server/access/security.h"

#include <utility>

#include "server/access/tls_credentials.h"
#include "server/log.h"

namespace expertd {
namespace {

template <class Store>
bool RefreshOne(Store* store, const char* what, Metrics& metrics) {
  if (store == nullptr) return false;
  const absl::StatusOr<bool> changed = store->Refresh();
  if (changed.ok() && !*changed) return false;
  metrics.CredentialsReloaded(what, changed.ok());
  if (changed.ok()) {
    Log(LogLevel::kInfo, "credentials reloaded", {{"what", what}});
  } else {
    Log(LogLevel::kWarning, "credentials not reloaded, the old ones stay",
        {{"what", what}, {"reason", changed.status().message()}});
  }
  return changed.ok();
}

}  // namespace

absl::StatusOr<Security> OpenSecurity(const ServerOptions& options) {
  Security security;
  if (!options.tls_cert.empty()) {
    auto certificates = OpenCertificates({options.tls_cert, options.tls_key, options.tls_client_ca});
    if (!certificates.ok()) return certificates.status();
    security.certificates = *std::move(certificates);
  }
  if (!options.metrics_tls_cert.empty()) {
    auto certificates = OpenCertificates({.cert = options.metrics_tls_cert,
                                          .key = options.metrics_tls_key,
                                          .client_ca = options.metrics_tls_client_ca,
                                          .flags = "--metrics-tls-"});
    if (!certificates.ok()) return certificates.status();
    security.metrics_certificates = *std::move(certificates);
  }
  if (!options.tokens_file.empty()) {
    auto tokens = OpenTokens(options.tokens_file);
    if (!tokens.ok()) return tokens.status();
    security.tokens = *std::move(tokens);
  }
  return security;
}

std::shared_ptr<grpc::ServerCredentials> Security::ServerCredentials() const {
  return certificates == nullptr ? nullptr : TlsCredentials(certificates);
}

AccessOptions Security::access(const ServerOptions& options) const {
  return {.tokens = tokens,
          .client_certificates = !options.tls_client_ca.empty(),
          .admin_identities = options.admin_identities,
          .local_admin = !options.model_root.empty() && IsLocalAddress(options.listen)};
}

void Security::Describe(Metrics& metrics) const {
  if (certificates == nullptr) return;
  metrics.SetCertificateExpiry(absl::ToDoubleSeconds(certificates->current()->not_after - absl::UnixEpoch()));
}

void Security::Refresh(Metrics& metrics) const {
  if (RefreshOne(certificates.get(), "certificate", metrics)) Describe(metrics);
  RefreshOne(metrics_certificates.get(), "metrics_certificate", metrics);
  RefreshOne(tokens.get(), "tokens", metrics);
}

}  // namespace expertd
