// Encryption, tokens, and replicas behind one name.
#include "client/cpp/connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "absl/strings/str_cat.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "tests/support/certificates.h"
#include "tests/unit/client/fake_server.h"

namespace expertd::client {
namespace {

using absl::StatusCode;
using expertd::testing::TestAuthority;
using expertd::testing::TestFolder;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

Request SomeRows() { return RandomRequest(FakeServer::LayerOf("copy"), 2, false, 1); }

absl::StatusCode CodeOf(const ClientOptions& options) {
  const auto client = Client::Connect(options);
  return client.ok() ? (*client)->Forward(SomeRows()).status().code() : client.status().code();
}

TEST(TokenTest, EveryCallCarriesIt) {
  FakeServer server;
  const auto client = Client::Connect({.endpoint = server.address(), .token = FixedToken("s3cret")});
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE((*client)->Forward(SomeRows()).ok());
  EXPECT_EQ(server.authorization(), "Bearer s3cret");
  ASSERT_TRUE((*client)->ListLayers().ok());
  ASSERT_EQ(CodeOf({.endpoint = server.address()}), StatusCode::kOk);
  EXPECT_EQ(server.authorization(), "");
  const auto stream = (*client)->OpenStream();
  ASSERT_TRUE(stream->Forward(SomeRows(), [](absl::StatusOr<Answer>) {}).ok());
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(server.authorization(), "Bearer s3cret");
}

TEST(TokenTest, AFileIsReadAgain) {
  const TestFolder folder;
  const TokenSource token = TokenFromFile(folder.Write("token", "first\nnot this\n"));
  EXPECT_EQ(*token(), "first");
  folder.Write("token", "  second ");
  const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (*token() == "first" && std::chrono::steady_clock::now() < patience)
    std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(*token(), "second");
  EXPECT_EQ(TokenFromFile(folder.Write("empty", "\n"))().status().code(), StatusCode::kUnauthenticated);
}

TEST(TokenTest, WithoutItNothingIsSent) {
  FakeServer server;
  bool lost = false;
  const TokenSource flaky = [&lost]() -> absl::StatusOr<std::string> {
    if (lost) return absl::UnauthenticatedError("gone");
    return "t";
  };
  const auto client = Client::Connect({.endpoint = server.address(), .token = flaky});
  ASSERT_TRUE(client.ok());
  lost = true;
  EXPECT_EQ((*client)->Forward(SomeRows()).status(), absl::UnauthenticatedError("gone"));
  const auto stream = (*client)->OpenStream();
  EXPECT_EQ(stream->Close(), absl::UnauthenticatedError("gone"));
  EXPECT_EQ(server.requests(), 0);
}

TEST(ClientOptionsTest, ErrorsNameTheField) {
  const std::pair<ClientOptions, const char*> wrong[] = {
      {{.endpoint = "10.0.0.1:8470", .token = FixedToken("t")}, "token: 10.0.0.1:8470 is reached in plaintext"},
      {{.endpoint = "dns:///expertd:8470", .token = FixedToken("t")}, "is reached in plaintext"},
      {{.tls = TlsOptions{.certificate_file = "a"}}, "certificate_file and key_file come together"},
      {{.tls = TlsOptions{}, .credentials = grpc::InsecureChannelCredentials()}, "tls: there are credentials too"},
      {{.retry = {.attempts = 0}}, "retry.attempts=0"}};
  for (const auto& [options, error] : wrong) {
    EXPECT_THAT(std::string(Client::Connect(options).status().message()), HasSubstr(error));
  }
  for (const char* local : {"127.0.0.1:1", "localhost:1", "[::1]:1", "unix:/x", "dns:///localhost:1"}) {
    EXPECT_TRUE(Validate(ClientOptions{.endpoint = local, .token = FixedToken("t")}).ok()) << local;
  }
  const auto missing = CredentialsOf({.tls = TlsOptions{.ca_file = "/nowhere.pem"}});
  EXPECT_EQ(missing.status().message(), "tls.ca_file: /nowhere.pem cannot be read");
}

TEST(TlsTest, BothEndsAreVerified) {
  const TestAuthority ours("ours"), others("others");
  const auto identity = ours.IssueForThisMachine(), me = ours.Issue({.common_name = "me"}),
             stranger = others.Issue({.common_name = "stranger"});
  grpc::SslServerCredentialsOptions pem(GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  pem.pem_root_certs = ours.cert();
  pem.pem_key_cert_pairs = {{identity.key, identity.cert}};
  FakeServer server(grpc::SslServerCredentials(pem));
  const TestFolder folder;
  const TlsOptions good{.ca_file = folder.Write("ca", ours.cert()),
                        .certificate_file = folder.Write("cert", me.cert),
                        .key_file = folder.Write("key", me.key)};
  const auto with = [&](auto change) {
    TlsOptions tls = good;
    change(tls);
    return ClientOptions{.endpoint = server.address(), .connect_timeout = milliseconds(1500), .tls = tls};
  };
  EXPECT_EQ(CodeOf(with([](TlsOptions&) {})), StatusCode::kOk);
  EXPECT_EQ(CodeOf(with([](TlsOptions& tls) { tls.server_name = "localhost"; })), StatusCode::kOk);
  EXPECT_EQ(CodeOf(with([](TlsOptions& tls) { tls.server_name = "elsewhere"; })), StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(with([&](TlsOptions& tls) { tls.ca_file = folder.Write("other", others.cert()); })),
            StatusCode::kUnavailable);
  EXPECT_EQ(CodeOf(with([&](TlsOptions& tls) {
              tls.certificate_file = folder.Write("strange cert", stranger.cert);
              tls.key_file = folder.Write("strange key", stranger.key);
            })),
            StatusCode::kUnavailable);
}

class ReplicasTest : public ::testing::Test {
 protected:
  ClientOptions Both() const {
    return {.endpoint = absl::StrCat("ipv4:", a_.address(), ",", b_.address()), .connections = 2};
  }
  // Calls until `wanted` is true after a round of calls, or patience ends.
  template <class Wanted>
  static bool Eventually(const Client& client, Wanted wanted) {
    const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (std::chrono::steady_clock::now() < patience) {
      bool all_ok = true;
      for (int i = 0; i < 8; ++i) all_ok &= client.Forward(SomeRows()).ok();
      if (wanted(all_ok)) return true;
      std::this_thread::sleep_for(milliseconds(20));
    }
    return false;
  }

  FakeServer a_, b_;
};

TEST_F(ReplicasTest, CallsGoToAllInTurn) {
  const auto client = Client::Connect(Both());
  ASSERT_TRUE(client.ok()) << client.status();
  ASSERT_TRUE(Eventually(**client, [&](bool) { return a_.requests() > 0 && b_.requests() > 0; }));
  const int before = a_.requests() - b_.requests();
  for (int i = 0; i < 40; ++i) ASSERT_TRUE((*client)->Forward(SomeRows()).ok());
  EXPECT_NEAR(a_.requests() - b_.requests(), before, 4);
}

TEST_F(ReplicasTest, AReplicaThatIsNotReadyGetsNothing) {
  b_.SetServing(false);
  ClientOptions options = Both();
  options.health_aware = true;
  const auto client = Client::Connect(options);
  ASSERT_TRUE(client.ok()) << client.status();
  for (int i = 0; i < 20; ++i) ASSERT_TRUE((*client)->Forward(SomeRows()).ok());
  EXPECT_EQ(a_.requests(), 20);
  EXPECT_EQ(b_.requests(), 0);
  b_.SetServing(true);
  EXPECT_TRUE(Eventually(**client, [&](bool) { return b_.requests() > 0; }));
  a_.SetServing(false);
  int last = -1;
  EXPECT_TRUE(Eventually(**client, [&](bool all_ok) {
    return all_ok && a_.requests() == std::exchange(last, a_.requests());
  })) << "calls move to the one that is ready";
  b_.SetServing(false);
  EXPECT_TRUE(Eventually(**client, [&](bool all_ok) {
    return !all_ok && (*client)->Forward(SomeRows()).status().code() == StatusCode::kUnavailable;
  })) << "nobody is left";
}

TEST_F(ReplicasTest, ConnectingWaitsForSomebodyReady) {
  a_.SetServing(false);
  const ClientOptions options{.endpoint = a_.address(), .connect_timeout = milliseconds(300), .health_aware = true};
  EXPECT_EQ(Client::Connect(options).status().code(), StatusCode::kUnavailable);
  a_.SetServing(true);
  EXPECT_EQ(CodeOf(options), StatusCode::kOk);
}

}  // namespace
}  // namespace expertd::client
