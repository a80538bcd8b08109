// Who gets in: tokens, certificates, and their renewal while calls are in progress.
#include <gmock/gmock.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "tests/support/certificates.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using grpc::StatusCode;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::UnorderedElementsAre;

constexpr char kInferToken[] = "infer-0123456789abcdef", kAdminToken[] = "admin-0123456789abcdef";

std::string TokenLines() {
  return absl::StrCat("plain:", kInferToken, " infer team\nplain:", kAdminToken, " admin ops\n");
}

std::shared_ptr<grpc::ChannelCredentials> Trusting(const TestAuthority& authority, const TestIdentity& self = {}) {
  return grpc::SslCredentials({authority.cert(), self.key, self.cert});
}

class SecurityTest : public ServerTest {
 protected:
  void TearDown() override { server_.reset(); }  // before its files go away

  void UseTls() {
    WriteIdentity(authority_.IssueForThisMachine());
    options_.tls_cert = folder_.Path("cert.pem");
    options_.tls_key = folder_.Path("key.pem");
  }
  void WriteIdentity(const TestIdentity& identity) const {
    folder_.Write("cert.pem", identity.cert);
    folder_.Write("key.pem", identity.key);
  }

  // A connection of its own.
  std::unique_ptr<v1::Expertd::Stub> Connect(const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    return v1::Expertd::NewStub(grpc::CreateCustomChannel(server_->addresses().service, credentials, arguments));
  }

  static void Prepare(grpc::ClientContext& context, const std::string& authorization) {
    context.set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    if (!authorization.empty()) context.AddMetadata("authorization", authorization);
  }
  static grpc::Status Call(v1::Expertd::Stub& stub, const std::string& authorization = "") {
    grpc::ClientContext context;
    Prepare(context, authorization);
    v1::ForwardResponse response;
    const v1::ForwardRequest request = MakeRequest(7, 2);
    const grpc::Status status = stub.Forward(&context, request, &response);
    if (status.ok()) {
      EXPECT_EQ(response.result().output(), request.hidden_states());
    }
    return status;
  }
  grpc::Status Call(const std::shared_ptr<grpc::ChannelCredentials>& credentials) const {
    return Call(*Connect(credentials));
  }

  const TestFolder folder_;
  const TestAuthority authority_{"test root"};
};

TEST_F(SecurityTest, EveryRpcWantsATokenThatIsKnown) {
  options_.tokens_file = folder_.Write("tokens", TokenLines());
  Start();
  const std::pair<std::string, StatusCode> cases[] = {
      {"", StatusCode::UNAUTHENTICATED},
      {"Bearer ", StatusCode::UNAUTHENTICATED},
      {absl::StrCat("Bearer ", kInferToken, "0"), StatusCode::UNAUTHENTICATED},
      {absl::StrCat("Basic ", kInferToken), StatusCode::UNAUTHENTICATED},
      {absl::StrCat("Bearer ", kAdminToken), StatusCode::PERMISSION_DENIED},
      {absl::StrCat("Bearer ", kInferToken), StatusCode::OK},
      {absl::StrCat("bearer ", kInferToken), StatusCode::OK},
  };
  int unauthenticated = 0;
  for (const auto& [authorization, code] : cases) {
    const grpc::Status forward = Call(*stub_, authorization);
    EXPECT_EQ(forward.error_code(), code) << authorization;
    EXPECT_THAT(forward.error_message(), Not(HasSubstr("0123456789"))) << "nothing is echoed";

    grpc::ClientContext list, info, stream;
    v1::ListLayersResponse layers;
    v1::GetServerInfoResponse limits;
    for (grpc::ClientContext* context : {&list, &info, &stream}) Prepare(*context, authorization);
    EXPECT_EQ(stub_->ListLayers(&list, {}, &layers).error_code(), code) << authorization;
    EXPECT_EQ(stub_->GetServerInfo(&info, {}, &limits).error_code(), code) << authorization;
    EXPECT_EQ(layers.layers().empty() && limits.version().empty(), code != StatusCode::OK);
    const auto calls = stub_->ForwardStream(&stream);
    calls->WritesDone();
    EXPECT_EQ(calls->Finish().error_code(), code) << authorization;
    unauthenticated += code == StatusCode::UNAUTHENTICATED ? 4 : 0;
  }
  EXPECT_EQ(Metric(R"(expertd_rejected_total{reason="unauthenticated"})"), unauthenticated);
  EXPECT_EQ(Metric(R"(expertd_rejected_total{reason="permission"})"), 4);
  EXPECT_EQ(Metric(R"(expertd_requests_total{code="UNAUTHENTICATED",rpc="Forward"})"), unauthenticated / 4);
  EXPECT_EQ(HealthOf(""), 1) << "health asks nobody who they are";
}

TEST_F(SecurityTest, ATokenThatWasTakenAwayEndsWithTheCallsThatBeganWithIt) {
  options_.tokens_file = folder_.Write("tokens", TokenLines());
  Start();
  const std::string token = absl::StrCat("Bearer ", kInferToken);
  grpc::ClientContext context;
  Prepare(context, token);
  const auto stream = stub_->ForwardStream(&context);
  v1::StreamRequest request;
  *request.mutable_forward() = MakeRequest(1, 1);
  v1::ForwardResponse response;
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response) && response.has_result());

  folder_.Write("tokens", "broken\n");
  EXPECT_TRUE(
      Eventually([&] { return Metric(R"(expertd_credential_reloads_total{result="failed",what="tokens"})") == 1; }));
  EXPECT_TRUE(Call(*stub_, token).ok()) << "a broken file changes nothing";

  folder_.Write("tokens", absl::StrCat("plain:", kAdminToken, " admin ops\n"));
  EXPECT_TRUE(Eventually([&] { return Call(*stub_, token).error_code() == StatusCode::UNAUTHENTICATED; }));
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_TRUE(response.has_result());
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(SecurityTest, TlsIsForWhoTrustsTheServer) {
  UseTls();
  Start();
  const TestAuthority stranger("another root");
  EXPECT_TRUE(Call(Trusting(authority_)).ok());
  EXPECT_EQ(Call(Trusting(stranger)).error_code(), StatusCode::UNAVAILABLE);
  EXPECT_EQ(Call(grpc::InsecureChannelCredentials()).error_code(), StatusCode::UNAVAILABLE);
  EXPECT_GT(Metric("expertd_tls_certificate_expiry_timestamp_seconds"), absl::ToUnixSeconds(absl::Now()));
  EXPECT_TRUE(Call(Trusting(authority_)).ok());
}

TEST_F(SecurityTest, ClientCertificatesAreAskedForAndVerified) {
  UseTls();
  options_.tls_client_ca = folder_.Write("clients.pem", authority_.cert());
  options_.health_address = "127.0.0.1:0";
  Start();
  const TestAuthority stranger("another root");
  const TestIdentity known = authority_.Issue({.common_name = "team"}),
                     forged = stranger.Issue({.common_name = "team"}),
                     expired = authority_.Issue({.common_name = "team", .valid_seconds = -60});
  EXPECT_TRUE(Call(Trusting(authority_, known)).ok());
  for (const TestIdentity& refused : {TestIdentity{}, forged, expired}) {
    EXPECT_EQ(Call(Trusting(authority_, refused)).error_code(), StatusCode::UNAVAILABLE);
  }
  EXPECT_EQ(Call(Trusting(authority_, authority_.Issue({}))).error_code(), StatusCode::UNAUTHENTICATED) << "nameless";
  EXPECT_TRUE(Call(Trusting(authority_, known)).ok());
  EXPECT_EQ(HealthOf("", server_->addresses().health), 1) << "probes need no certificate";
}

// One stream for each of two certificates; the first has queued all of its requests before the second comes.
TEST_F(SecurityTest, TheCertificatesNameIsTheTenantThatSharesTheDevice) {
  UseTls();
  options_.tls_client_ca = folder_.Write("clients.pem", authority_.cert());
  options_.max_batch_rows = 1;
  options_.inline_batch_us = 0;
  Start();
  std::vector<int> order;
  engine_->FailWhen([&order](absl::Span<const Segment> segments) {
    order.push_back(static_cast<const std::uint8_t*>(segments[0].input)[0]);  // MakeRequest begins with the id
    return absl::OkStatus();
  });
  const auto run_order = [&](const char* first, const char* second) {
    const std::unique_ptr<v1::Expertd::Stub> stubs[] = {
        Connect(Trusting(authority_, authority_.Issue({.common_name = first}))),
        Connect(Trusting(authority_, authority_.Issue({.common_name = second})))};
    grpc::ClientContext contexts[2];
    std::unique_ptr<grpc::ClientReaderWriter<v1::StreamRequest, v1::ForwardResponse>> streams[2];
    const auto send = [&](int who, int from, int to) {
      v1::StreamRequest request;
      for (int id = from; id <= to; ++id) {
        *request.mutable_forward() = MakeRequest(static_cast<std::uint64_t>(id), 1);
        EXPECT_TRUE(streams[who]->Write(request));
      }
    };
    for (int who = 0; who < 2; ++who) {
      Prepare(contexts[who], "");
      streams[who] = stubs[who]->ForwardStream(&contexts[who]);
    }
    v1::ForwardResponse answer;
    send(0, 1, 1);  // so that the server knows what a batch costs
    EXPECT_TRUE(streams[0]->Read(&answer));
    engine_->Close();
    send(0, 2, 6);
    EXPECT_TRUE(Eventually([&] { return Metric(R"(expertd_queue_rows{layer="tiny/0"})") == 4; }));
    send(1, 7, 8);
    EXPECT_TRUE(Eventually([&] { return Metric(R"(expertd_queue_rows{layer="tiny/0"})") == 6; }));
    engine_->Open();
    for (int id = 2; id <= 6; ++id) EXPECT_TRUE(streams[0]->Read(&answer));
    for (int id = 7; id <= 8; ++id) EXPECT_TRUE(streams[1]->Read(&answer));
    for (const auto& stream : streams) {
      stream->WritesDone();
      EXPECT_TRUE(stream->Finish().ok());
    }
    return std::exchange(order, {});
  };
  EXPECT_THAT(run_order("one", "one"), ElementsAre(1, 2, 3, 4, 5, 6, 7, 8)) << "a tenant's requests in their order";
  const std::vector<int> shared = run_order("flood", "other");
  ASSERT_THAT(shared, UnorderedElementsAre(1, 2, 3, 4, 5, 6, 7, 8));
  EXPECT_LT(std::find(shared.begin(), shared.end(), 8), std::find(shared.begin(), shared.end(), 5))
      << "another tenant does not wait for all that the first has queued: " << ::testing::PrintToString(shared);
}

TEST_F(SecurityTest, CertificatesAreRenewedUnderStreamsThatGoOn) {
  UseTls();
  Start();
  const auto old = Connect(Trusting(authority_));
  grpc::ClientContext context;
  Prepare(context, "");
  const auto stream = old->ForwardStream(&context);
  v1::StreamRequest request;
  v1::ForwardResponse response;
  std::uint64_t id = 0;
  const auto answers = [&] {
    *request.mutable_forward() = MakeRequest(++id, 3);
    return stream->Write(request) && stream->Read(&response) && response.request_id() == id && response.has_result();
  };
  ASSERT_TRUE(answers());

  const TestAuthority successor("the next root");
  const TestIdentity renewed = successor.IssueForThisMachine();
  folder_.Write("cert.pem", renewed.cert);  // half a pair: nothing changes
  EXPECT_TRUE(Eventually([&] {
    return answers() && Metric(R"(expertd_credential_reloads_total{result="failed",what="certificate"})") == 1;
  }));
  EXPECT_TRUE(Call(Trusting(authority_)).ok());

  folder_.Write("key.pem", renewed.key);
  EXPECT_TRUE(Eventually([&] { return answers() && Call(Trusting(successor)).ok(); }));
  EXPECT_EQ(Call(Trusting(authority_)).error_code(), StatusCode::UNAVAILABLE) << "new connections get the new one";
  EXPECT_TRUE(answers());
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
  EXPECT_EQ(Metric(R"(expertd_credential_reloads_total{result="ok",what="certificate"})"), 1);
}

TEST_F(SecurityTest, MetricsOverTlsForThoseWithACertificate) {
  const TestIdentity server = authority_.IssueForThisMachine(), scraper = authority_.Issue({.common_name = "scraper"});
  options_.metrics_tls_cert = folder_.Write("metrics.pem", server.cert);
  options_.metrics_tls_key = folder_.Write("metrics.key", server.key);
  options_.metrics_tls_client_ca = folder_.Write("scrapers.pem", authority_.cert());
  Start();
  folder_.Write("scraper.pem", scraper.cert + scraper.key);
  const auto curl = [&](const std::string& flags) {
    const std::string command = absl::StrCat("curl --silent --max-time 10 --cacert ", folder_.Path("scrapers.pem"), " ",
                                             flags, server_->addresses().metrics, "/metrics");
    FILE* pipe = popen(command.c_str(), "r");
    std::string text;
    std::array<char, 4096> buffer;
    for (std::size_t n; (n = fread(buffer.data(), 1, buffer.size(), pipe)) > 0;) text.append(buffer.data(), n);
    pclose(pipe);
    return text;
  };
  const std::string as_scraper = absl::StrCat("--cert ", folder_.Path("scraper.pem"), " ");
  EXPECT_THAT(curl(as_scraper + "https://"), HasSubstr("expertd_build_info"));
  EXPECT_EQ(curl("https://"), "") << "no certificate";
  EXPECT_THAT(curl("http://"), Not(HasSubstr("expertd_build_info"))) << "no plaintext";
}

TEST_F(SecurityTest, FilesThatCannotBeUsedStopTheStart) {
  UseTls();
  options_.tls_key = folder_.Write("other.pem", authority_.IssueForThisMachine().key);
  const auto server = Server::Start(options_, std::make_unique<GatedEngine>(), TinyPlan(), {});
  EXPECT_TRUE(absl::IsInvalidArgument(server.status())) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("--tls-key"));
}

}  // namespace
}  // namespace expertd::testing
