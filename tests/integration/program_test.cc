// The program expertd-client against a real server.
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
#include "tests/support/rows.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int code = -1;
  std::string out, err;
};

Outcome Client(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), EXPERTD_BIN_DIR "/expertd-client");
  const auto process = Process::Start(arguments);
  EXPECT_TRUE(process.ok()) << process.status();
  const int code = (*process)->Wait(std::chrono::seconds(60)).value_or(-1);
  return {code, (*process)->out(), (*process)->err()};
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

TEST_F(ProgramTest, ExitCodesTellFailuresApart) {
  EXPECT_EQ(Client({"status", "--endpoint", "127.0.0.1:1"}).code, 3);
  EXPECT_EQ(Client({"bench", "--endpoint", server_->address(), "--rows", "6"}).code, 2) << "more than the server takes";
  EXPECT_EQ(Client({"bench", "--no-such-flag"}).code, 2);
  EXPECT_EQ(Client({}).code, 2);
  EXPECT_EQ(Client({"--help"}).code, 0);
  EXPECT_EQ(Client({"bench", "--endpoint", server_->address(), "--layer", "9"}).code, 1);
  const Outcome missing = Client({"forward", "--endpoint", server_->address(), "--in", "/nowhere.safetensors"});
  EXPECT_EQ(missing.code, 2);
  EXPECT_THAT(missing.err, HasSubstr("nowhere.safetensors"));
}

}  // namespace
}  // namespace expertd::testing
