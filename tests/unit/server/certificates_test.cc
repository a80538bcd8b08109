#include "server/access/certificates.h"

#include <gmock/gmock.h>

#include "tests/support/certificates.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;

class CertificatesTest : public ::testing::Test {
 protected:
  CertificatePaths Write(const TestIdentity& identity) {
    return {.cert = folder_.Write("cert.pem", identity.cert), .key = folder_.Write("key.pem", identity.key)};
  }
  static std::string Refusal(const CertificatePaths& paths) {
    return std::string(ReadCertificates(paths).status().message());
  }

  const TestFolder folder_;
  const TestAuthority authority_{"test root"};
};

TEST_F(CertificatesTest, APairThatFitsIsTaken) {
  const CertificatePaths paths = Write(authority_.IssueForThisMachine());
  const auto read = ReadCertificates(paths);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_GT(read->not_after, absl::Now());
  EXPECT_LT(read->not_after, absl::Now() + absl::Hours(2));
}

TEST_F(CertificatesTest, RefusalsNameFlagFileAndReason) {
  const TestIdentity one = authority_.IssueForThisMachine(), other = authority_.IssueForThisMachine();
  EXPECT_THAT(Refusal(Write({one.cert, other.key})), HasSubstr("is not the key of the certificate in "));
  EXPECT_THAT(Refusal(Write({"no pem", one.key})), HasSubstr("--tls-cert"));
  EXPECT_THAT(Refusal(Write({one.cert, "no pem"})), HasSubstr("no unencrypted private key"));
  EXPECT_THAT(Refusal(Write(authority_.Issue({.common_name = "old", .valid_seconds = -10}))), HasSubstr("expired at "));
  CertificatePaths paths = Write(one);
  paths.client_ca = folder_.Path("none.pem");
  EXPECT_THAT(Refusal(paths), HasSubstr("--tls-client-ca " + paths.client_ca + ": No such file"));
  paths.client_ca = folder_.Write("ca.pem", "");
  EXPECT_THAT(Refusal(paths), HasSubstr("--tls-client-ca " + paths.client_ca + ": holds no certificate"));
}

TEST_F(CertificatesTest, AHalfReplacedPairIsNotTaken) {
  const TestIdentity old = authority_.IssueForThisMachine(), renewed = authority_.IssueForThisMachine();
  const auto store = OpenCertificates(Write(old));
  ASSERT_TRUE(store.ok()) << store.status();
  folder_.Write("cert.pem", renewed.cert);
  EXPECT_FALSE((*store)->Refresh().ok());
  EXPECT_EQ((*store)->current()->cert, old.cert);
  folder_.Write("key.pem", renewed.key);
  EXPECT_TRUE(*(*store)->Refresh());
  EXPECT_EQ((*store)->current()->cert, renewed.cert);
}

}  // namespace
}  // namespace expertd::testing
