// The command in this process, over the golden checkpoints.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/commands/commands.h"

namespace expertd {
namespace {

const std::string kGolden = EXPERTD_TEST_DATA "/golden/";

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

Outcome Verify(std::vector<std::string> args) {
  CLI::App app;
  Outcome outcome;
  AddVerifyCommand(app, &outcome.exit_code);
  args.insert(args.begin(), "verify");
  std::reverse(args.begin(), args.end());  // as CLI11 takes them
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  try {
    app.parse(args);
  } catch (const CLI::ParseError& error) {
    outcome.exit_code = 2;
    outcome.err = error.what();
  }
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err += ::testing::internal::GetCapturedStderr();
  return outcome;
}

std::string Io(const std::string& name) { return kGolden + name + "/io.safetensors"; }

TEST(VerifyTest, EveryGoldenCaseHolds) {
  int cases = 0;
  for (const auto& entry : std::filesystem::directory_iterator(kGolden)) {
    if (!entry.is_directory()) continue;
    const std::string name = entry.path().filename().string();
    const Outcome outcome = Verify({"--checkpoint", kGolden + name, "--io", Io(name), "--json"});
    EXPECT_EQ(outcome.exit_code, 0) << name << ": " << outcome.out << outcome.err;
    const nlohmann::json report = nlohmann::json::parse(outcome.out);
    EXPECT_TRUE(report["ok"]) << name;
    EXPECT_TRUE(report["skipped"].empty()) << name;
    ASSERT_EQ(report["layers"].size(), 1u) << name;
    const nlohmann::json& check = report["layers"][0]["checks"][0];
    EXPECT_EQ(check["rows"], 19);
    EXPECT_GT(check["relative_error"], 0.0);
    EXPECT_LE(check["relative_error"], 5e-3);
    EXPECT_EQ(check["routing_mismatches"], 0);
    ++cases;
  }
  EXPECT_GE(cases, 18);
}

TEST(VerifyTest, WithoutAFileTheReferenceJudges) {
  const Outcome outcome = Verify({"--checkpoint", kGolden + "qwen2_moe", "--rows", "9", "--seed", "3", "--json"});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const nlohmann::json checks = nlohmann::json::parse(outcome.out)["layers"][0]["checks"];
  ASSERT_EQ(checks.size(), 2u);
  EXPECT_EQ(checks[0]["check"], "server-routed");
  EXPECT_EQ(checks[0]["routing_rows"], 9);
  EXPECT_EQ(checks[1]["check"], "pre-routed");
  EXPECT_EQ(checks[1]["routing_rows"], 0);
}

TEST(VerifyTest, OneLineALayer) {
  const Outcome outcome = Verify({"--checkpoint", kGolden + "olmoe", "--io", Io("olmoe")});
  EXPECT_EQ(outcome.exit_code, 0);
  EXPECT_THAT(outcome.out, ::testing::ContainsRegex("layer   0  file +19 rows  relative error [0-9.e-]+  worst row "
                                                    "[0-9]+ .*  routing mismatches 0  ok\nok: 1 layers"));
}

TEST(VerifyTest, FailsWhereItShould) {
  const struct {
    std::vector<std::string> args;
    int exit_code;
    const char* says;
  } kCases[] = {
      {{}, 2, "--checkpoint DIR is missing"},
      {{"--endpoint", "127.0.0.1:1"}, 2, "--endpoint alone needs --io FILE"},
      {{"--checkpoint", kGolden + "olmoe", "--device", "tpu"}, 2, "device: 'tpu' is neither cpu nor cuda:<index>"},
      {{"--checkpoint", kGolden + "olmoe", "--path", "fused"},
       2,
       "path: 'fused' is not auto, sorted, batched or fp8-rows"},
      {{"--checkpoint", kGolden + "olmoe", "--path", "batched"}, 2, "path: the cpu engine"},
      {{"--checkpoint", kGolden + "olmoe", "--device", "cpu", "--endpoint", "127.0.0.1:1"}, 2, "excludes"},
      {{"--checkpoint", kGolden + "olmoe", "--rows", "0"}, 2, "--rows"},
      {{"--checkpoint", kGolden + "olmoe", "--layer", "5"}, 2, "there is no MoE layer 5"},
      {{"--checkpoint", kGolden + "olmoe", "--io", Io("deepseek_v3")}, 2, "has no output.0"},
      {{"--checkpoint", kGolden + "none"}, 3, "none"},
      {{"--checkpoint", kGolden + "olmoe", "--io", kGolden + "none"}, 3, "none"},
      {{"--checkpoint", kGolden + "olmoe", "--io", kGolden + "olmoe/model.safetensors"},
       3,
       "hidden_states: is missing"},
      {{"--checkpoint", kGolden + "olmoe", "--io", Io("qwen3_moe_fp8")}, 3, "160 columns, layer 0 has 64"},
      {{"--checkpoint", kGolden + "olmoe", "--family", "unheard_of"}, 3, "unheard_of"},
      {{"--endpoint", "127.0.0.1:1", "--io", Io("olmoe")}, 5, "endpoint: 127.0.0.1:1"},
      {{"--checkpoint", kGolden + "olmoe", "--device", "cuda:99"}, 5, "cuda:99"},
  };
  for (const auto& c : kCases) {
    const Outcome outcome = Verify(c.args);
    EXPECT_EQ(outcome.exit_code, c.exit_code) << outcome.err;
    EXPECT_THAT(outcome.err, ::testing::HasSubstr(c.says));
    EXPECT_EQ(outcome.out.find("ok: "), std::string::npos);
  }
}

TEST(VerifyTest, WrongNumbersAreExitOne) {
  // Another model's file, and a tolerance that bf16 cannot meet.
  const Outcome other = Verify({"--checkpoint", kGolden + "olmoe", "--io", Io("mixtral")});
  EXPECT_EQ(other.exit_code, 1);
  EXPECT_THAT(other.out, ::testing::HasSubstr("routing mismatches 19 (first: row 0)  FAILED"));
  const Outcome strict = Verify({"--checkpoint", kGolden + "olmoe", "--tolerance", "1e-12", "--json"});
  EXPECT_EQ(strict.exit_code, 1);
  EXPECT_FALSE(nlohmann::json::parse(strict.out)["ok"]);
}

}  // namespace
}  // namespace expertd
