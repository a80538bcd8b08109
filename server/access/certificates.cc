#include "server/access/certificates.h"

#include <openssl/err.h>
#include <openssl/pem.h>

#include <ctime>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/access/openssl_pointers.h"

namespace expertd {
namespace {

absl::Status Wrong(const std::string& flag, const std::string& path, absl::string_view what) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(flag, " ", path, ": ", what));
}

// An encrypted key is refused instead of asked for on the terminal.
int NoPassphrase(char*, int, int, void*) { return -1; }

X509Ptr FirstCertificate(const std::string& pem) {
  return X509Ptr(PEM_read_bio_X509(Over(pem).get(), nullptr, &NoPassphrase, nullptr));
}

absl::Time TimeOf(const ASN1_TIME* time) {
  std::tm utc = {};
  return ASN1_TIME_to_tm(time, &utc) == 1 ? absl::FromTimeT(timegm(&utc)) : absl::InfinitePast();
}

}  // namespace

absl::StatusOr<Certificates> ReadCertificates(const CertificatePaths& paths) {
  Certificates read;
  const struct {
    const char* name;
    const std::string* path;
    std::string* text;
  } files[] = {{"cert", &paths.cert, &read.cert},
               {"key", &paths.key, &read.key},
               {"client-ca", &paths.client_ca, &read.client_ca}};
  for (const auto& file : files) {
    if (file.path->empty()) continue;
    absl::StatusOr<std::string> text = ReadSmallFile(paths.flags + file.name, *file.path);
    if (!text.ok()) return text.status();
    *file.text = *std::move(text);
  }
  const X509Ptr certificate = FirstCertificate(read.cert);
  if (!certificate) return Wrong(paths.flags + "cert", paths.cert, "holds no certificate (PEM)");
  const KeyPtr key(PEM_read_bio_PrivateKey(Over(read.key).get(), nullptr, &NoPassphrase, nullptr));
  if (!key) return Wrong(paths.flags + "key", paths.key, "holds no unencrypted private key (PEM)");
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return Wrong(paths.flags + "key", paths.key, absl::StrCat("is not the key of the certificate in ", paths.cert));
  }
  read.not_after = TimeOf(X509_get0_notAfter(certificate.get()));
  if (read.not_after <= absl::Now()) {
    return Wrong(paths.flags + "cert", paths.cert, absl::StrCat("expired at ", absl::FormatTime(read.not_after)));
  }
  if (!paths.client_ca.empty() && !FirstCertificate(read.client_ca)) {
    return Wrong(paths.flags + "client-ca", paths.client_ca, "holds no certificate (PEM)");
  }
  return read;
}

absl::StatusOr<std::shared_ptr<CertificateStore>> OpenCertificates(const CertificatePaths& paths) {
  std::vector<std::string> files = {paths.cert, paths.key};
  if (!paths.client_ca.empty()) files.push_back(paths.client_ca);
  return CertificateStore::Open(std::move(files), [paths] { return ReadCertificates(paths); });
}

}  // namespace expertd
