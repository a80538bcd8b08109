// The server's edge as operators set it up: what stops a start, what ends a connection, what ends a process.
#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <thread>
#include <tuple>

#include "absl/base/config.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "client/cpp/client.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/server_process.h"
#include "tests/support/certificates.h"

namespace expertd::testing {
namespace {

using client::Client;
using ::testing::HasSubstr;
using ::testing::Not;

// Runs until it ends; {exit code, stderr}.
std::pair<int, std::string> Outcome(const std::vector<std::string>& flags) {
  std::vector<std::string> argv = {EXPERTD_BIN_DIR "/expertd", "serve",       "--checkpoint",
                                   GoldenDir("olmoe"),         "--log-level", "error"};
  for (const char* address : {"--listen", "--metrics-address"}) {
    if (std::find(flags.begin(), flags.end(), address) == flags.end())
      argv.insert(argv.end(), {address, "127.0.0.1:0"});
  }
  argv.insert(argv.end(), flags.begin(), flags.end());
  const auto process = Process::Start(argv);
  EXPECT_TRUE(process.ok()) << process.status();
  const int code = (*process)->Wait(kPatience).value_or(-1);
  return {code, (*process)->err()};
}

TEST(EdgeTest, FlagsAndFilesThatDoNotGoTogetherExitWith2) {
  const TestFolder folder;
  const TestAuthority authority("root");
  const TestIdentity one = authority.IssueForThisMachine(), other = authority.IssueForThisMachine();
  const std::string cert = folder.Write("cert.pem", one.cert), key = folder.Write("key.pem", one.key),
                    wrong_key = folder.Write("other.pem", other.key), root = folder.Write("root.pem", authority.cert()),
                    tokens = folder.Write("tokens", "plain:infer-0123456789 infer team\n"),
                    bad_tokens = folder.Write("bad", "plain:secret-0123456789 infer\n");
  const std::pair<std::vector<std::string>, const char*> cases[] = {
      {{"--listen", "0.0.0.0:0"}, "--insecure"},
      {{"--metrics-address", "0.0.0.0:0"}, "--metrics-tls-cert"},
      {{"--tls-cert", cert}, "one needs the other"},
      {{"--tls-cert", cert, "--tls-key", wrong_key}, "is not the key"},
      {{"--tls-cert", cert, "--tls-key", folder.Path("none")}, "No such file"},
      {{"--tls-client-ca", root}, "--tls-client-ca: needs"},
      {{"--tls-cert", cert, "--tls-key", key, "--admin-identity", "ops"}, "--admin-identity: needs"},
      {{"--tokens-file", bad_tokens}, ":1: 2 fields"},
      {{"--tokens-file", tokens, "--tls-cert", cert, "--tls-key", key, "--tls-client-ca", root, "--admin-identity",
        "x"},
       "it is the tokens that say"},
      {{"--model-root", "/", "--listen", "0.0.0.0:0", "--insecure"}, "nobody could have the admin role"},
      {{"--trace-file", "/nowhere/spans"}, "--trace-file /nowhere/spans"},
  };
  for (const auto& [flags, reason] : cases) {
    const auto [code, err] = Outcome(flags);
    EXPECT_EQ(code, 2) << ::testing::PrintToString(flags) << err;
    EXPECT_THAT(err, HasSubstr(reason));
    EXPECT_THAT(err, Not(HasSubstr("secret"))) << "no token is repeated";
  }
}

TEST(EdgeTest, BeyondLoopbackWithTlsAndTokens) {
  const TestFolder folder;
  const TestAuthority authority("root");
  const TestIdentity identity = authority.IssueForThisMachine();
  const auto server = ServerProcess::Start(
      EXPERTD_BIN_DIR,
      {"--checkpoint", GoldenDir("olmoe"), "--listen", "0.0.0.0:0", "--tls-cert",
       folder.Write("cert.pem", identity.cert), "--tls-key", folder.Write("key.pem", identity.key), "--tokens-file",
       folder.Write("tokens", "plain:infer-0123456789 infer team\n"), "--self-probe-interval-ms", "50"});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::vector<std::string> parts = absl::StrSplit((*server)->address(), ':');
  const std::string endpoint = "127.0.0.1:" + parts.back();
  const auto channel = grpc::CreateChannel(endpoint, grpc::SslCredentials({authority.cert(), "", ""}));
  EXPECT_EQ(RawUnary(channel, "/expertd.v1.Expertd/ListLayers", "").status.error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
  RawStream nameless(channel, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");
  EXPECT_FALSE(nameless.Read().has_value());
  EXPECT_EQ(nameless.Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED) << "reflection is for admins here";
  EXPECT_EQ(RawUnary(RawChannel(endpoint), kForwardMethod, "").status.error_code(), grpc::StatusCode::UNAVAILABLE);
  std::this_thread::sleep_for(std::chrono::milliseconds(500));  // ten self-probes over TLS
  (*server)->process().Signal(SIGTERM);
  EXPECT_EQ((*server)->process().Wait(kPatience), 0) << (*server)->process().err();
  EXPECT_THAT((*server)->process().err(), Not(HasSubstr("infer-0123456789")));
}

TEST(EdgeTest, TheClientLoadsAndUnloads) {
  const TestFolder folder;
  std::filesystem::copy(GoldenDir("mixtral"), folder.Path("second"), std::filesystem::copy_options::recursive);
  const auto server =
      ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--model-root", folder.Path(""),
                                             "--max-hidden-size", "4096", "--tokens-file",
                                             folder.Write("tokens",
                                                          "plain:both-0123456789abc infer,admin ops\n"
                                                          "plain:infer-0123456789 infer team\n")});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string good = folder.Write("good", "both-0123456789abc\n"),
                    poor = folder.Write("poor", "infer-0123456789\n");
  const auto run = [&](const std::string& command, const std::string& token, std::vector<std::string> flags) {
    flags.insert(flags.begin(), {EXPERTD_BIN_DIR "/expertd-client", command, "--endpoint", (*server)->address(),
                                 "--token-file", token});
    const auto process = Process::Start(flags);
    const int code = process.ok() ? (*process)->Wait(kPatience).value_or(-1) : -1;
    return std::pair(code, (*process)->out() + (*process)->err());
  };
  auto [code, said] = run("load", good, {"--path", "second", "--model", "two"});
  EXPECT_EQ(code, 0) << said;
  EXPECT_THAT(said, HasSubstr("two/0"));
  std::tie(code, said) = run("status", good, {});
  EXPECT_THAT(said, HasSubstr("two/0"));
  std::tie(code, said) = run("unload", poor, {"--model", "two"});
  EXPECT_EQ(code, 1);
  EXPECT_THAT(said, HasSubstr("the admin role is needed"));
  std::tie(code, said) = run("unload", good, {"--model", "two", "--layer", "0"});
  EXPECT_EQ(code, 0) << said;
  std::tie(code, said) = run("load", good, {"--path", "../second"});
  EXPECT_EQ(code, 1);
  EXPECT_THAT(said, HasSubstr("'..'"));
}

TEST(EdgeTest, AServerOutOfFileDescriptorsSaysSoAndEnds) {
#ifdef ABSL_HAVE_ADDRESS_SANITIZER
  GTEST_SKIP() << "UBSan opens a pipe to look at an object's type, and takes the lack of descriptors for a wrong one";
#endif
  const auto process =
      Process::Start({"/bin/sh", "-c",
                      absl::StrCat("ulimit -n 48 && exec ", EXPERTD_BIN_DIR,
                                   "/expertd serve --listen 127.0.0.1:0 --metrics-address '' ",
                                   "--self-probe-interval-ms 100 --device null --checkpoint ", GoldenDir("olmoe"))});
  ASSERT_TRUE(process.ok()) << process.status();
  const auto address = (*process)->WaitForLine("listening on ", kPatience);
  ASSERT_TRUE(address.has_value() && (*process)->WaitForLine("ready", kPatience).has_value()) << (*process)->err();
  const std::vector<std::string> parts = absl::StrSplit(*address, ':');
  sockaddr_in to = {};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<std::uint16_t>(std::stoi(parts.back())));
  inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
  std::vector<int> connections;
  for (int i = 0; i < 80; ++i) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    ASSERT_EQ(connect(fd, reinterpret_cast<const sockaddr*>(&to), sizeof(to)), 0);
    connections.push_back(fd);
  }
  EXPECT_EQ((*process)->Wait(kPatience), 4) << (*process)->err();
  EXPECT_THAT((*process)->err(), HasSubstr("does not answer"));
  for (const int fd : connections) close(fd);
}

TEST(EdgeTest, StreamsRotateBeforeTheirConnectionsAreOld) {
  const auto server =
      ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--max-connection-age-ms", "1500"});
  ASSERT_TRUE(server.ok()) << server.status();
  const GoldenCase golden("olmoe");
  const client::Request request = golden.RequestFor(golden.layers[0].layer);
  const auto client = Client::Connect({.endpoint = (*server)->address()});
  ASSERT_TRUE(client.ok()) << client.status();
  const auto stream = (*client)->OpenStream(8);
  const auto start = std::chrono::steady_clock::now();
  std::atomic<int> answered = 0, refused = 0;
  while (stream
             ->Forward(request,
                       [&](const absl::StatusOr<client::Answer>& answer) {
                         ++(answer.ok() ? answered : refused);
                         EXPECT_TRUE(answer.ok() || absl::IsUnavailable(answer.status())) << answer.status();
                       })
             .ok()) {
    ASSERT_LT(std::chrono::steady_clock::now() - start, kPatience);
  }
  const absl::Status status = stream->Close();
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("open another"));
  EXPECT_GT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(1100));
  EXPECT_GT(answered, 0);
  EXPECT_TRUE((*client)->Forward(request, kPatience).ok()) << "the next one is served";
}

TEST(EdgeTest, SampledRequestsLeaveSpans) {
  const TestFolder folder;
  const std::string path = folder.Path("spans.jsonl");
  const auto server = ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--trace-file", path});
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = Client::Connect({.endpoint = (*server)->address()});
  ASSERT_TRUE(client.ok()) << client.status();
  const GoldenCase golden("olmoe");
  client::Request request = golden.RequestFor(golden.layers[0].layer);
  const std::pair<std::uint64_t, std::string> calls[] = {
      {1, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
      {2, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"},  // not sampled
      {3, "not a traceparent"},
      {4, ""},
  };
  for (const auto& [id, traceparent] : calls) {
    request.head.set_request_id(id);
    request.head.set_traceparent(traceparent);
    ASSERT_TRUE((*client)->Forward(request, kPatience).ok()) << traceparent;
  }
  request.head.set_layer(77);
  request.head.set_request_id(5);
  request.head.set_traceparent(calls[0].second);
  EXPECT_EQ((*client)->Forward(request, kPatience).status().code(), absl::StatusCode::kNotFound);
  (*server)->process().Signal(SIGTERM);
  ASSERT_EQ((*server)->process().Wait(kPatience), 0);

  std::map<std::string, int> status_of;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const auto json = nlohmann::json::parse(line);
    for (const auto& span : json["resourceSpans"][0]["scopeSpans"][0]["spans"]) {
      EXPECT_EQ(span["traceId"], "0af7651916cd43dd8448eb211c80319c");
      if (span["kind"] != 2) continue;
      for (const auto& attribute : span["attributes"]) {
        if (attribute["key"] == "expertd.request_id")
          status_of[attribute["value"]["stringValue"]] = span["status"]["code"];
      }
    }
  }
  EXPECT_EQ(status_of, (std::map<std::string, int>{{"1", 1}, {"5", 2}}));
}

}  // namespace
}  // namespace expertd::testing
