// The programs that talk to a server, against a real one: expertd-client, and expertd verify --endpoint.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "kernels/checkpoint/safetensors.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/server_process.h"
#include "tests/support/certificates.h"
#include "tests/support/rows.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

Outcome Client(const std::vector<std::string>& arguments) {
  return RunToEnd({EXPERTD_BIN_DIR "/expertd-client"}, arguments);
}

class ProgramTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server =
        ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("qwen2_moe"), "--max-rows-per-request", "5"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    out_ = (std::filesystem::temp_directory_path() / absl::StrCat("expertd_program_test.", getpid())).string();
  }
  void TearDown() override { std::filesystem::remove(out_); }

  Outcome Verify(const std::vector<std::string>& arguments) const {
    return RunToEnd({EXPERTD_BIN_DIR "/expertd", "verify", "--endpoint", server_->address()}, arguments);
  }

  std::unique_ptr<ServerProcess> server_;
  std::string out_;
};

TEST_F(ProgramTest, StatusShowsServerAndLayers) {
  const Outcome outcome = Client({"status", "--endpoint", server_->address()});
  EXPECT_EQ(outcome.code, 0) << outcome.err;
  for (const char* text : {"SERVING", "qwen2_moe/0", "5 rows a request", "top-4 of 12"})
    EXPECT_THAT(outcome.out, HasSubstr(text));
}

TEST_F(ProgramTest, ForwardWritesTheModelsOwnOutputAlsoInPieces) {
  const GoldenCase golden("qwen2_moe");
  ASSERT_GT(golden.rows, 5);
  const Outcome outcome =
      Client({"forward", "--endpoint", server_->address(), "--model", "qwen2_moe", "--layer", "0", "--in",
              GoldenDir("qwen2_moe") + "/io.safetensors", "--out", out_, "--output-dtype", "f32", "--return-routing"});
  ASSERT_EQ(outcome.code, 0) << outcome.err;
  const auto file = SafetensorsFile::Open(out_);
  ASSERT_TRUE(file.ok()) << file.status();
  const TensorEntry* output = (*file)->Find("output");
  const TensorEntry* ids = (*file)->Find("topk_ids");
  ASSERT_TRUE(output != nullptr && ids != nullptr && (*file)->Find("topk_weights") != nullptr);
  EXPECT_EQ(output->shape, (std::vector<std::int64_t>{golden.rows, golden.hidden_size}));
  EXPECT_EQ(ids->shape, (std::vector<std::int64_t>{golden.rows, 4}));
  EXPECT_LE(RelativeError(ValuesOf(output->data, DType::kF32, golden.layers[0].output.size()), golden.layers[0].output),
            5e-3);
}

TEST_F(ProgramTest, BenchMeasuresAndChecks) {
  for (const std::vector<std::string>& mode : std::vector<std::vector<std::string>>{
           {"--mode", "stream", "--connections", "2"}, {"--mode", "unary", "--pre-routed"}}) {
    std::vector<std::string> arguments = {"bench",      "--endpoint", server_->address(), "--rows", "5",
                                          "--requests", "500",        "--warmup-s",       "0.05",   "--check",
                                          "--json",     out_};
    arguments.insert(arguments.end(), mode.begin(), mode.end());
    const Outcome outcome = Client(arguments);
    EXPECT_EQ(outcome.code, 0) << outcome.out << outcome.err;
    for (const char* text : {"p99.9", "rows", "all bits are equal"}) EXPECT_THAT(outcome.out, HasSubstr(text));
    std::ifstream file(out_);
    const auto json = nlohmann::json::parse(file, nullptr, false);
    ASSERT_TRUE(json.is_object());
    EXPECT_EQ(json["requests"], 500);
    EXPECT_EQ(json["check"]["differing"], 0);
    EXPECT_EQ(json["passed"], true);
    EXPECT_GT(json["rows_per_second"].get<double>(), 0);
  }
}

TEST_F(ProgramTest, VerifyHoldsTheServerAgainstAFileAlsoInPieces) {
  const Outcome outcome =
      Verify({"--io", GoldenDir("qwen2_moe") + "/io.safetensors", "--json"});  // 19 rows, 5 a request
  ASSERT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  const auto report = nlohmann::json::parse(outcome.out);
  EXPECT_THAT(report["subject"].get<std::string>(), HasSubstr(server_->address()));
  const auto& check = report["layers"][0]["checks"][0];
  EXPECT_EQ(check["check"], "file");
  EXPECT_EQ(check["rows"], 19);
  EXPECT_GT(check["relative_error"], 0.0);
  EXPECT_EQ(check["routing_rows"], 19);
  EXPECT_EQ(check["routing_mismatches"], 0);
}

TEST_F(ProgramTest, VerifyHoldsTheServerAgainstTheReferenceOfACheckpoint) {
  const Outcome outcome = Verify({"--checkpoint", GoldenDir("qwen2_moe"), "--rows", "12", "--json"});
  ASSERT_EQ(outcome.code, 0) << outcome.out << outcome.err;
  const auto checks = nlohmann::json::parse(outcome.out)["layers"][0]["checks"];
  ASSERT_EQ(checks.size(), 2u);
  EXPECT_EQ(checks[0]["check"], "server-routed");
  EXPECT_EQ(checks[0]["routing_rows"], 12);
  EXPECT_EQ(checks[1]["check"], "pre-routed");
  for (const auto& check : checks) EXPECT_LE(check["relative_error"], 5e-3);
}

TEST_F(ProgramTest, VerifyTellsAWrongServerFromAWrongCall) {
  const std::string io = GoldenDir("qwen2_moe") + "/io.safetensors";
  const struct {
    std::vector<std::string> arguments;
    int code;
    const char* says;
  } kCases[] = {
      {{"--checkpoint", GoldenDir("olmoe")}, 1, "other weights"},
      {{"--io", io, "--tolerance", "1e-12"}, 1, "FAILED: 1 layers"},
      {{"--io", GoldenDir("qwen3_moe_fp8") + "/io.safetensors"}, 3, "has 160 columns, layer 0 has"},
      {{"--io", io, "--model", "nobody"}, 2, "nobody has no layer in service; the server has qwen2_moe"},
      {{"--io", io, "--layer", "7"}, 2, "there is no MoE layer 7"},
  };
  for (const auto& c : kCases) {
    const Outcome outcome = Verify(c.arguments);
    EXPECT_EQ(outcome.code, c.code) << outcome.out << outcome.err;
    EXPECT_THAT(outcome.out + outcome.err, HasSubstr(c.says));
  }
}

TEST_F(ProgramTest, BenchSweepsAnOpenLoopAndJoinsTheServersMetrics) {
  const Outcome outcome = Client({"bench",
                                  "--endpoint",
                                  server_->address(),
                                  "--layers",
                                  "all",
                                  "--rows",
                                  "zipf:1..5",
                                  "--routing",
                                  "zipf:1",
                                  "--sweep",
                                  "rate",
                                  "--slo",
                                  "p50=30s,errors=50%",
                                  "--sweep-from",
                                  "20",
                                  "--sweep-to",
                                  "40",
                                  "--warmup-s",
                                  "0.05",
                                  "--duration-s",
                                  "0.3",
                                  "--windows",
                                  "2",
                                  "--metrics",
                                  server_->metrics_address(),
                                  "--json",
                                  out_});
  ASSERT_TRUE(outcome.code == 0 || outcome.code == 1) << outcome.out << outcome.err;  // 1: too slow a machine
  for (const char* text : {"offered/s", "service", "metrics us", "zipf:1..5 rows each, pre-routed"})
    EXPECT_THAT(outcome.out, HasSubstr(text));
  std::ifstream file(out_);
  const auto json = nlohmann::json::parse(file, nullptr, false);
  ASSERT_TRUE(json.is_object());
  EXPECT_GE(json["points"].size(), 2u);
  EXPECT_EQ(json["load"]["loop"], "open");
  const auto& metrics = json["points"][0]["server_metrics"];
  EXPECT_GT(metrics["batches"].get<double>(), 0);
  EXPECT_GT(metrics["stages_us_mean"]["gemm"].get<double>(), 0);
}

TEST(SecureProgramTest, CertificateAndTokenOpenTheDoor) {
  const TestAuthority authority("ours");
  const TestIdentity identity = authority.IssueForThisMachine();
  const TestFolder folder;
  const auto server = ServerProcess::Start(
      EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("qwen2_moe"), "--tls-cert", folder.Write("cert", identity.cert),
                        "--tls-key", folder.Write("key", identity.key), "--tokens-file",
                        folder.Write("tokens", "plain:s3cret-of-twenty-letters infer tenant\n")});
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string ca = folder.Write("ca", authority.cert()),
                    token = folder.Write("token", "s3cret-of-twenty-letters\n"),
                    wrong = folder.Write("wrong", "guess-of-twenty-letters\n");
  const auto bench = [&](std::vector<std::string> how) {
    how.insert(how.begin(), {"bench", "--endpoint", (*server)->address(), "--rows", "2", "--requests", "20",
                             "--warmup-s", "0", "--check", "--check-samples", "3"});
    return Client(how);
  };
  const Outcome both = bench({"--tls-ca", ca, "--token-file", token});
  EXPECT_EQ(both.code, 0) << both.out << both.err;
  EXPECT_THAT(both.out, HasSubstr("all bits are equal"));
  const Outcome unary = bench({"--tls-ca", ca, "--token-file", token, "--mode", "unary"});
  EXPECT_EQ(unary.code, 0) << unary.out << unary.err;
  const Outcome stranger = bench({"--tls-ca", ca, "--token-file", wrong});
  EXPECT_EQ(stranger.code, 3);
  EXPECT_THAT(stranger.err, HasSubstr("UNAUTHENTICATED"));
  EXPECT_THAT(stranger.err, Not(HasSubstr("guess-of"))) << "credentials are not echoed";
}

TEST_F(ProgramTest, ExitCodesTellFailuresApart) {
  EXPECT_EQ(Client({"status", "--endpoint", "127.0.0.1:1"}).code, 3);
  EXPECT_EQ(Client({"bench", "--endpoint", server_->address(), "--rows", "6"}).code, 2) << "more than the server takes";
  for (const std::vector<std::string>& wrong :
       std::vector<std::vector<std::string>>{{"--no-such-flag"},
                                             {"--rows", "0"},
                                             {"--slo", "p99=2ms"},
                                             {"--rate", "5", "--concurrency", "2"},
                                             {"--sweep", "rate", "--slo", "p99"},
                                             {"--arrivals", "trace:/nowhere.csv"},
                                             {"--metrics", "https://a"}}) {
    std::vector<std::string> arguments = {"bench", "--endpoint", server_->address()};
    arguments.insert(arguments.end(), wrong.begin(), wrong.end());
    EXPECT_EQ(Client(arguments).code, 2) << wrong[0];
  }
  EXPECT_EQ(Client({}).code, 2);
  EXPECT_EQ(Client({"--help"}).code, 0);
  EXPECT_EQ(Client({"bench", "--endpoint", server_->address(), "--layer", "9"}).code, 1);
  const Outcome missing = Client({"forward", "--endpoint", server_->address(), "--in", "/nowhere.safetensors"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("nowhere.safetensors"));
}

}  // namespace
}  // namespace expertd::testing
