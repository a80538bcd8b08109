// What keeps a server's doors: certificates and tokens as the options name them, and their renewal.
#pragma once

#include <grpcpp/security/server_credentials.h>

#include <memory>

#include "absl/status/statusor.h"
#include "server/access/access.h"
#include "server/access/certificates.h"
#include "server/metrics.h"
#include "server/options.h"

namespace expertd {

struct Security {
  std::shared_ptr<CertificateStore> certificates;          // null: plaintext
  std::shared_ptr<CertificateStore> metrics_certificates;  // null: plaintext
  std::shared_ptr<TokenStore> tokens;                      // null: no tokens

  // Null: plaintext. For one listener.
  std::shared_ptr<grpc::ServerCredentials> ServerCredentials() const;
  AccessOptions access(const ServerOptions& options) const;
  // What `metrics` says from the start.
  void Describe(Metrics& metrics) const;
  // Reads changed files again; says so in the log and in `metrics`. To be called often: it looks at a few files.
  void Refresh(Metrics& metrics) const;
};

// InvalidArgument naming flag, file and reason.
absl::StatusOr<Security> OpenSecurity(const ServerOptions& options);

}  // namespace expertd
