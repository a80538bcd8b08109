#include "tests/support/certificates.h"

#include <openssl/bio.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>
#include <stdlib.h>

#include <cstdint>
#include <fstream>

namespace expertd::testing {
namespace {

template <class T, class WriteFn>
std::string ToPem(T* object, WriteFn write) {
  BIO* bio = BIO_new(BIO_s_mem());
  write(bio, object);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string pem(data, static_cast<std::size_t>(size));
  BIO_free(bio);
  return pem;
}

std::string CertPem(X509* cert) {
  return ToPem(cert, [](BIO* bio, X509* c) { PEM_write_bio_X509(bio, c); });
}
std::string KeyPem(EVP_PKEY* key) {
  return ToPem(key,
               [](BIO* bio, EVP_PKEY* k) { PEM_write_bio_PrivateKey(bio, k, nullptr, nullptr, 0, nullptr, nullptr); });
}

void Extend(X509* cert, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, cert, nullptr, nullptr, 0);
  X509_EXTENSION* extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  X509_add_ext(cert, extension, -1);
  X509_EXTENSION_free(extension);
}

// Signed by `issuer` with `signer`; null: by itself.
X509* Make(EVP_PKEY* key, const IdentityOptions& options, X509* issuer, EVP_PKEY* signer) {
  X509* cert = X509_new();
  X509_set_version(cert, 2);
  std::uint32_t serial = 0;
  RAND_bytes(reinterpret_cast<unsigned char*>(&serial), sizeof(serial));
  ASN1_INTEGER_set_uint64(X509_get_serialNumber(cert), serial);
  X509_gmtime_adj(X509_getm_notBefore(cert), -7200);
  X509_gmtime_adj(X509_getm_notAfter(cert), options.valid_seconds);
  X509_set_pubkey(cert, key);
  if (!options.common_name.empty()) {
    X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_UTF8,
                               reinterpret_cast<const unsigned char*>(options.common_name.c_str()), -1, -1, 0);
  }
  X509_set_issuer_name(cert, X509_get_subject_name(issuer != nullptr ? issuer : cert));
  Extend(cert, issuer != nullptr ? issuer : cert, NID_basic_constraints,
         issuer != nullptr ? "CA:FALSE" : "critical,CA:TRUE");
  if (!options.alternative_names.empty()) Extend(cert, cert, NID_subject_alt_name, options.alternative_names);
  X509_sign(cert, signer != nullptr ? signer : key, EVP_sha256());
  return cert;
}

}  // namespace

TestAuthority::TestAuthority(const std::string& name)
    : key_(EVP_EC_gen("P-256")),
      cert_(Make(key_, {.common_name = name}, nullptr, nullptr)),
      cert_pem_(CertPem(cert_)) {}

TestAuthority::~TestAuthority() {
  X509_free(cert_);
  EVP_PKEY_free(key_);
}

TestIdentity TestAuthority::Issue(const IdentityOptions& options) const {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* cert = Make(key, options, cert_, key_);
  TestIdentity identity = {CertPem(cert), KeyPem(key)};
  X509_free(cert);
  EVP_PKEY_free(key);
  return identity;
}

TestFolder::TestFolder() {
  std::string name = (std::filesystem::temp_directory_path() / "expertd_test.XXXXXX").string();
  path_ = mkdtemp(name.data());
}

TestFolder::~TestFolder() { std::filesystem::remove_all(path_); }

std::string TestFolder::Write(const std::string& name, const std::string& text) const {
  const std::string path = Path(name), part = path + ".part";
  std::ofstream(part, std::ios::binary) << text;
  std::filesystem::rename(part, path);
  return path;
}

}  // namespace expertd::testing
