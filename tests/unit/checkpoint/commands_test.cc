// `expertd inspect` and `expertd synth` as a user calls them: output and exit codes.
#include "server/commands/commands.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/unit/checkpoint/tiny_checkpoint.h"

namespace expertd {
namespace {

using ::expertd::testing::TempDir;
using ::testing::HasSubstr;

struct Outcome {
  int exit_code = -1;
  std::string out, err;
};

Outcome Call(std::vector<std::string> arguments) {
  CLI::App app;
  app.require_subcommand(1);
  Outcome outcome;
  AddInspectCommand(app, &outcome.exit_code);
  AddSynthCommand(app, &outcome.exit_code);
  std::reverse(arguments.begin(), arguments.end());
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    outcome.exit_code = 2;
  }
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err = ::testing::internal::GetCapturedStderr();
  return outcome;
}

std::string Golden(const std::string& name) { return absl::StrCat(EXPERTD_TEST_DATA, "/golden/", name); }

TEST(InspectTest, PrintsFamilyLayersAndBytes) {
  const Outcome outcome = Call({"inspect", Golden("deepseek_v3_fp8")});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("deepseek_v3_fp8: family deepseek_v3, 1 MoE layers\n"));
  EXPECT_THAT(
      outcome.out,
      HasSubstr("D 192, F 144, sigmoid, top-2 of 8 from 1 of 2 groups, bias for choosing, renormalised, times 2.5, "
                "silu, fp8, shared expert F 144 (bf16); on Hopper sorted: intermediate size is no multiple of 64\n"));
}

TEST(InspectTest, PrintsJson) {
  const Outcome outcome = Call({"inspect", "--json", Golden("qwen2_moe")});
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  const auto json = nlohmann::json::parse(outcome.out);
  EXPECT_EQ(json["family"], "qwen2_moe");
  ASSERT_EQ(json["layers"].size(), 1u);
  EXPECT_EQ(json["layers"][0]["shared_intermediate_size"], 96);
  EXPECT_EQ(json["layers"][0]["shared_gated"], true);
  EXPECT_EQ(json["layers"][0]["hopper_path"], "sorted: intermediate size is no multiple of 64");
  // Router, twelve experts of 3 x 48 x 64, the shared expert of 3 x 96 x 64 and its gate, two bytes each.
  EXPECT_EQ(json["layers"][0]["bytes"], 2 * (12 * 64 + 12 * 3 * 48 * 64 + 3 * 96 * 64 + 64));
  EXPECT_EQ(json["bytes"], json["layers"][0]["bytes"]);
  EXPECT_TRUE(json["unsupported"].empty());
}

TEST(InspectTest, FamilyOverrides) {
  EXPECT_EQ(Call({"inspect", Golden("olmoe"), "--family", "flex_olmo"}).exit_code, 0);
  const Outcome outcome = Call({"inspect", Golden("olmoe"), "--family", "none"});
  EXPECT_EQ(outcome.exit_code, 3);
  EXPECT_THAT(outcome.err, HasSubstr("family \"none\" is unknown; known: mixtral"));
}

TEST(InspectTest, BrokenAndUnsupportedAreThree) {
  const Outcome missing = Call({"inspect", "/nowhere", "--json"});
  EXPECT_EQ(missing.exit_code, 3);
  EXPECT_EQ(missing.err, "expertd inspect: /nowhere: no such folder\n");
  EXPECT_EQ(nlohmann::json::parse(missing.out)["error"], "/nowhere: no such folder");

  const TempDir dir;
  std::filesystem::copy(Golden("olmoe"), dir.path(), std::filesystem::copy_options::recursive);
  auto config = nlohmann::json::parse(testing::ReadFile(dir.path() + "/config.json"));
  config["hidden_act"] = "mish";
  testing::WriteFile(dir.path() + "/config.json", config.dump());
  const Outcome unsupported = Call({"inspect", dir.path()});
  EXPECT_EQ(unsupported.exit_code, 3);
  EXPECT_THAT(unsupported.out, HasSubstr("unsupported   config.json: hidden_act: \"mish\" is unknown"));
}

TEST(SynthCommandTest, WritesWhatInspectReads) {
  const TempDir dir;
  const std::string out = dir.path() + "/olmoe";
  const std::vector<std::string> arguments = {"synth",    "--like", "olmoe",    "--experts", "8",
                                              "--hidden", "64",     "--layers", "2",         "--intermediate",
                                              "32",       "--out",  out};
  const Outcome made = Call(arguments);
  EXPECT_EQ(made.exit_code, 0) << made.err;
  EXPECT_THAT(made.err, HasSubstr("100 %"));
  EXPECT_EQ(Call({"inspect", out}).exit_code, 0);
  const Outcome again = Call(arguments);
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.err, HasSubstr("not empty; --force"));
  EXPECT_EQ(Call({"synth", "--like", "nothing", "--out", out}).exit_code, 2);
  EXPECT_EQ(Call({"synth", "--like", "olmoe"}).exit_code, 2);
}

}  // namespace
}  // namespace expertd
