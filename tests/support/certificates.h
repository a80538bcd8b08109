// Certificates for tests, made when they run.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

typedef struct evp_pkey_st EVP_PKEY;
typedef struct x509_st X509;

namespace expertd::testing {

// PEM, both.
struct TestIdentity {
  std::string cert;
  std::string key;
};

struct IdentityOptions {
  std::string common_name;
  std::string alternative_names;  // as OpenSSL writes them: "DNS:localhost,IP:127.0.0.1,URI:spiffe://x"; empty: none
  long valid_seconds = 3600;      // from now; negative: expired
};

// A certificate authority of its own.
class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name);
  ~TestAuthority();

  const std::string& cert() const { return cert_pem_; }  // PEM
  TestIdentity Issue(const IdentityOptions& options) const;
  // For localhost and 127.0.0.1.
  TestIdentity IssueForThisMachine(const std::string& common_name = "expertd test server") const {
    return Issue({.common_name = common_name, .alternative_names = "DNS:localhost,IP:127.0.0.1"});
  }

 private:
  EVP_PKEY* key_;
  X509* cert_;
  std::string cert_pem_;
};

// A folder that goes away with its owner.
class TestFolder {
 public:
  TestFolder();
  ~TestFolder();
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;

  // Replaces the file in one step; returns its path.
  std::string Write(const std::string& name, const std::string& text) const;
  std::string Path(const std::string& name) const { return (path_ / name).string(); }

 private:
  std::filesystem::path path_;
};

}  // namespace expertd::testing
