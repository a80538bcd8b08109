// Synthetic checkpoints: every preset in small, read back through the loader; equal seeds, shards, folders, errors.
#include "kernels/checkpoint/synth.h"

#include <cmath>
#include <filesystem>
#include <set>
#include <string>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checkpoint/checkpoint.h"
#include "tests/unit/checkpoint/tiny_checkpoint.h"

namespace expertd {
namespace {

using ::expertd::testing::ReadFile;
using ::expertd::testing::TempDir;
using ::expertd::testing::WriteFile;
using ::testing::HasSubstr;

SynthOptions Small(const SynthPreset& preset, const std::string& dtype = "") {
  SynthOptions options = {.like = std::string(preset.name), .layers = 1, .hidden_size = 128, .intermediate_size = 64};
  options.experts = preset.experts % 8 == 0 ? 16 : preset.experts;
  options.dtype = dtype;
  return options;
}

absl::Status Synth(const SynthOptions& options, const std::string& dir, const SynthWriteOptions& write = {},
                   const SynthProgress& progress = nullptr) {
  auto plan = PlanSynth(options);
  if (!plan.ok()) return plan.status();
  return WriteSynth(*plan, dir, write, progress);
}

double RootMeanSquare(const WeightView& view) {
  double sum = 0;
  for (std::int64_t o = 0; o < view.out; ++o) {
    for (std::int64_t i = 0; i < view.in; ++i) sum += view.At(o, i) * view.At(o, i);
  }
  return std::sqrt(sum / static_cast<double>(view.out * view.in));
}

class PresetTest : public ::testing::TestWithParam<SynthPreset> {};

TEST_P(PresetTest, IsReadBackAsTheModelsLayer) {
  const SynthPreset& preset = GetParam();
  const TempDir dir;
  const SynthOptions options = Small(preset);
  ASSERT_TRUE(Synth(options, dir.path()).ok()) << Synth(options, dir.path());
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->family(), preset.model_type);
  ASSERT_EQ((*checkpoint)->layers().size(), 1u);
  const LayerSpec& spec = (*checkpoint)->layers()[0];
  EXPECT_EQ(spec.layer, preset.first_moe);
  EXPECT_EQ(spec.num_experts, options.experts);
  EXPECT_EQ(spec.experts_per_token, preset.experts_per_token);
  EXPECT_EQ(spec.expert_format, preset.format);
  auto source = (*checkpoint)->OpenLayer(spec.layer);
  ASSERT_TRUE(source.ok()) << source.status();
  // Big enough samples for these bounds: 0.7 / sqrt(in) and 2 / sqrt(D), coarse formats within a third.
  const double tolerance = preset.format == WeightFormat::kBF16 ? 0.05 : 0.35;
  const ExpertWeights last = (*source)->expert(spec.num_experts - 1);
  const ExpertWeights first = (*source)->expert(0);
  EXPECT_NEAR(RootMeanSquare(last.gate) * std::sqrt(128) / 0.7, 1, tolerance);
  EXPECT_NEAR(RootMeanSquare(first.up) * std::sqrt(128) / 0.7, 1, tolerance);
  EXPECT_NEAR(RootMeanSquare(first.down) * std::sqrt(64) / 0.7, 1, tolerance);
  EXPECT_NEAR(RootMeanSquare((*source)->router().weight) * std::sqrt(128) / 2, 1, 0.1);
  EXPECT_NE(first.gate.At(0, 0) + first.gate.At(0, 1) + first.gate.At(0, 2),
            last.gate.At(0, 0) + last.gate.At(0, 1) + last.gate.At(0, 2));
}

INSTANTIATE_TEST_SUITE_P(Presets, PresetTest, ::testing::ValuesIn(SynthPresets()), [](const auto& info) {
  std::string name(info.param.name);
  for (char& c : name) c = std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
  return name;
});

TEST(SynthPlanTest, FullSizesAreTheModels) {
  auto plan = PlanSynth({.like = "olmoe"});
  ASSERT_TRUE(plan.ok());
  EXPECT_EQ(plan->bytes, 64LL * 3 * 2048 * 1024 * 2 + 64 * 2048 * 2);
  auto deepseek = PlanSynth({.like = "deepseek-v3", .layers = 0});
  ASSERT_TRUE(deepseek.ok());
  EXPECT_GT(deepseek->bytes, 650e9);
  EXPECT_LT(deepseek->bytes, 660e9);
  EXPECT_GT(deepseek->shards.size(), 100u);
  auto oss = PlanSynth({.like = "gpt-oss-120b"});
  ASSERT_TRUE(oss.ok());
  EXPECT_NEAR(static_cast<double>(oss->bytes), 128.0 * 3 * 2880 * 2880 * 17 / 32,
              0.01 * static_cast<double>(oss->bytes));
}

TEST(SynthPlanTest, RefusesWhatCannotBe) {
  const auto message = [](const SynthOptions& options) {
    const absl::Status status = PlanSynth(options).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
    return std::string(status.message());
  };
  EXPECT_THAT(message({.like = "gpt-2"}), HasSubstr("--like: \"gpt-2\" is unknown; known: olmoe, "));
  EXPECT_THAT(message({.like = "olmoe", .dtype = "int4"}), HasSubstr("--dtype: \"int4\" is none of bf16, fp8, mxfp4"));
  EXPECT_THAT(message({.like = "olmoe", .dtype = "mxfp4"}), HasSubstr("are not published in mxfp4"));
  EXPECT_THAT(message({.like = "gpt-oss-20b", .dtype = "fp8"}), HasSubstr("are not published in fp8"));
  EXPECT_THAT(message({.like = "olmoe", .layers = 17}), HasSubstr("--layers: 17 is outside 0..16"));
  EXPECT_THAT(message({.like = "olmoe", .layers = -1}), HasSubstr("--layers: -1 is outside 0..16"));
  EXPECT_THAT(message({.like = "olmoe", .experts = 4}), HasSubstr("experts_per_token: 8 is outside 1..4"));
  EXPECT_THAT(message({.like = "olmoe", .experts = -4}), HasSubstr("num_experts: -4 is outside 1..4096"));
  EXPECT_THAT(message({.like = "olmoe", .hidden_size = 1 << 20}), HasSubstr("hidden_size: 1048576 is outside"));
  EXPECT_THAT(message({.like = "gpt-oss-20b", .hidden_size = 40}),
              HasSubstr("--hidden 40 and --intermediate 2880 must be"));
}

TEST(SynthWriteTest, SeedsAndShardsAndThreads) {
  SynthOptions options = {.like = "olmoe", .layers = 2, .experts = 8, .hidden_size = 100, .intermediate_size = 36};
  options.dtype = "fp8";
  const auto fingerprint = [&](int threads, std::size_t files) {
    const TempDir dir;
    std::int64_t last = 0;
    EXPECT_TRUE(Synth(options, dir.path(), {.threads = threads}, [&](std::int64_t bytes, std::int64_t total) {
                  EXPECT_GT(bytes, last);
                  EXPECT_LE(bytes, total);
                  last = bytes;
                }).ok());
    auto plan = PlanSynth(options);
    EXPECT_EQ(last, plan->bytes);
    EXPECT_EQ(plan->shards.size(), files);
    auto checkpoint = Checkpoint::Open(dir.path());
    EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->layers().size(), 2u);
    return *(*(*checkpoint)->OpenLayer(1))->Fingerprint();
  };
  const std::string first = fingerprint(1, 1);
  EXPECT_EQ(fingerprint(3, 1), first);
  options.shard_bytes = 60'000;
  EXPECT_EQ(fingerprint(2, 3), first);
  options.seed = 1;
  EXPECT_NE(fingerprint(2, 3), first);
}

TEST(SynthWriteTest, FoldersThatAreNotEmptyAreLeftAlone) {
  const TempDir dir;
  const std::string out = dir.path() + "/a/b";
  SynthOptions options = {
      .like = "olmoe", .experts = 8, .hidden_size = 64, .intermediate_size = 32, .shard_bytes = 20'000};
  ASSERT_TRUE(Synth(options, out).ok());
  const std::string config = ReadFile(out + "/config.json");
  EXPECT_TRUE(std::filesystem::exists(out + "/model.safetensors.index.json"));
  WriteFile(out + "/notes.txt", "mine");
  EXPECT_EQ(Synth(options, out).code(), absl::StatusCode::kFailedPrecondition);

  options.shard_bytes = 1 << 30;
  ASSERT_TRUE(Synth(options, out, {.force = true}).ok());
  std::set<std::string> files;
  for (const auto& entry : std::filesystem::directory_iterator(out)) files.insert(entry.path().filename());
  EXPECT_THAT(files, ::testing::ElementsAre("config.json", "model.safetensors", "notes.txt"));
  EXPECT_EQ(ReadFile(out + "/config.json"), config);
}

TEST(SynthWriteTest, TooLittleSpaceIsSaidBeforeAnythingIsWritten) {
  const TempDir dir;
  auto plan = PlanSynth({.like = "olmoe"});
  ASSERT_TRUE(plan.ok());
  plan->bytes = 1LL << 60;
  const absl::Status status = WriteSynth(*plan, dir.path());
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(status.message()), HasSubstr("the weights take 1152921504.6 GB, only "));
  EXPECT_TRUE(std::filesystem::is_empty(dir.path()));
}

}  // namespace
}  // namespace expertd
