// The server's certificate, its key, and whom it trusts.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/access/reloaded.h"

namespace expertd {

struct CertificatePaths {
  std::string cert;              // PEM: the server's certificate, then those that lead to its root
  std::string key;               // PEM, not encrypted
  std::string client_ca;         // PEM: who signs clients' certificates; empty: clients need none
  std::string flags = "--tls-";  // what the flags that named them begin with, for errors
};

struct Certificates {
  std::string cert, key, client_ca;  // the files' contents
  absl::Time not_after;              // of the server's certificate
};

// InvalidArgument naming flag and file: unreadable, no PEM, a key of another certificate, an expired certificate.
absl::StatusOr<Certificates> ReadCertificates(const CertificatePaths& paths);

using CertificateStore = Reloaded<Certificates>;
absl::StatusOr<std::shared_ptr<CertificateStore>> OpenCertificates(const CertificatePaths& paths);

}  // namespace expertd
