// Every golden checkpoint through the loader: the spec that its config.json means, and the reference's output from the
// loaded weights against the model's own.
#include <cstdlib>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checkpoint/checkpoint.h"
#include "kernels/checkpoint/safetensors.h"
#include "kernels/reference/layer.h"
#include "tests/support/rows.h"

namespace expertd {
namespace {

struct Golden {
  const char* name;
  const char* family;
  std::vector<std::int64_t> layers;
  std::int64_t hidden, experts, topk, width, shared;
  const char* routing;
  WeightFormat format = WeightFormat::kBF16;
};

void PrintTo(const Golden& golden, std::ostream* out) { *out << golden.name; }

const Golden kGoldens[] = {
    {"deepseek_v2", "deepseek_v2", {1}, 64, 16, 4, 32, 64, "softmax, top-4 of 16 from 2 of 4 groups, times 16"},
    {"deepseek_v3",
     "deepseek_v3",
     {1},
     64,
     32,
     8,
     32,
     32,
     "sigmoid, top-8 of 32 from 4 of 8 groups, bias for choosing, renormalised, times 2.5"},
    {"deepseek_v3_fp8",
     "deepseek_v3",
     {1},
     192,
     8,
     2,
     144,
     144,
     "sigmoid, top-2 of 8 from 1 of 2 groups, bias for choosing, renormalised, times 2.5",
     WeightFormat::kFp8Block128},
    {"ernie4_5_moe", "ernie4_5_moe", {1}, 64, 16, 4, 32, 64, "softmax, top-4 of 16, bias for choosing, renormalised"},
    {"glm4_moe",
     "glm4_moe",
     {1},
     64,
     16,
     4,
     32,
     32,
     "sigmoid, top-4 of 16, bias for choosing, renormalised, times 1.5"},
    {"gpt_oss", "gpt_oss", {0}, 64, 8, 4, 64, 0, "raw logits, top-4 of 8, softmax of the chosen"},
    {"gpt_oss_mxfp4",
     "gpt_oss",
     {0},
     64,
     8,
     4,
     64,
     0,
     "raw logits, top-4 of 8, softmax of the chosen",
     WeightFormat::kMxfp4},
    {"granitemoe", "granitemoe", {0}, 64, 8, 3, 48, 0, "raw logits, top-3 of 8, softmax of the chosen"},
    {"kimi_linear",
     "kimi_linear",
     {1},
     64,
     16,
     4,
     32,
     32,
     "sigmoid, top-4 of 16, bias for choosing, renormalised, times 2.446"},
    {"llama4",
     "llama4_text",
     {0},
     64,
     8,
     1,
     48,
     48,
     "raw logits, top-1 of 8, sigmoid of the chosen, weight on the input"},
    {"minimax_m2", "minimax_m2", {0}, 64, 16, 4, 32, 0, "sigmoid, top-4 of 16, bias for choosing, renormalised"},
    {"mixtral", "mixtral", {0}, 64, 8, 2, 80, 0, "softmax, top-2 of 8, renormalised"},
    {"olmoe", "olmoe", {0}, 64, 16, 8, 32, 0, "softmax, top-8 of 16"},
    {"phimoe", "phimoe", {0}, 64, 8, 2, 48, 0, "raw logits, top-2 of 8, sparse mixer"},
    {"qwen2_moe", "qwen2_moe", {0}, 64, 12, 4, 48, 96, "softmax, top-4 of 12"},
    {"qwen3_moe", "qwen3_moe", {0}, 64, 16, 4, 48, 0, "softmax, top-4 of 16, renormalised"},
    {"qwen3_moe_fp8",
     "qwen3_moe",
     {0},
     160,
     4,
     2,
     136,
     0,
     "softmax, top-2 of 4, renormalised",
     WeightFormat::kFp8Block128},
    {"qwen3_next", "qwen3_next", {0}, 64, 16, 4, 32, 96, "softmax, top-4 of 16, renormalised"},
};

class GoldenTest : public ::testing::TestWithParam<Golden> {
 protected:
  std::string Dir() const { return absl::StrCat(EXPERTD_TEST_DATA, "/golden/", GetParam().name); }
};

TEST_P(GoldenTest, SpecIsWhatConfigMeans) {
  const Golden& golden = GetParam();
  auto checkpoint = Checkpoint::Open(Dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->family(), golden.family);
  EXPECT_TRUE((*checkpoint)->unsupported().empty());
  ASSERT_EQ((*checkpoint)->layers().size(), golden.layers.size());
  for (std::size_t i = 0; i < golden.layers.size(); ++i) {
    const LayerSpec& spec = (*checkpoint)->layers()[i];
    EXPECT_EQ(spec.Name(), absl::StrCat(golden.name, "/", golden.layers[i]));
    EXPECT_EQ(spec.family, golden.family);
    EXPECT_EQ(spec.hidden_size, golden.hidden);
    EXPECT_EQ(spec.num_experts, golden.experts);
    EXPECT_EQ(spec.held_experts, golden.experts);
    EXPECT_EQ(spec.experts_per_token, golden.topk);
    EXPECT_EQ(spec.intermediate_size, golden.width);
    EXPECT_EQ(spec.shared_intermediate_size, golden.shared);
    EXPECT_EQ(spec.expert_format, golden.format);
    EXPECT_EQ(spec.RoutingInWords(), golden.routing);
    EXPECT_TRUE(spec.Validate().ok());
    EXPECT_GT((*checkpoint)->LayerBytes(golden.layers[i]), 0);
  }
}

using Ids = std::map<std::int32_t, double>;

TEST_P(GoldenTest, ReferenceOnTheLoadedWeightsGivesTheModelsOutput) {
  auto checkpoint = Checkpoint::Open(Dir());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  auto io = SafetensorsFile::Open(Dir() + "/io.safetensors");
  ASSERT_TRUE(io.ok()) << io.status();
  const auto doubles = [&](const std::string& name) {
    const TensorEntry* entry = (*io)->Find(name);
    std::vector<double> values;
    if (entry == nullptr) return values;
    std::int64_t count = 1;
    for (const std::int64_t size : entry->shape) count *= size;
    const VectorView view = {.data = entry->data, .dtype = entry->dtype, .size = count};
    for (std::int64_t i = 0; i < count; ++i) values.push_back(view.At(i));
    return values;
  };
  for (const LayerSpec& spec : (*checkpoint)->layers()) {
    auto source = (*checkpoint)->OpenLayer(spec.layer);
    ASSERT_TRUE(source.ok()) << source.status();
    reference::LayerRows rows = {.rows = doubles("hidden_states")};
    rows.n = static_cast<std::int64_t>(rows.rows.size()) / spec.hidden_size;
    const reference::LayerResult result = reference::RunLayer(**source, rows);
    const std::vector<double> want = doubles(absl::StrCat("output.", spec.layer));
    ASSERT_EQ(want.size(), rows.rows.size());
    EXPECT_LE(testing::RelativeError(result.output, want), 1e-5);

    const std::vector<double> ids = doubles(absl::StrCat("topk_ids.", spec.layer));
    const std::vector<double> weights = doubles(absl::StrCat("topk_weights.", spec.layer));
    if (ids.empty() || ids.size() != result.topk_ids.size()) continue;
    for (std::size_t at = 0; at < ids.size(); at += static_cast<std::size_t>(spec.experts_per_token)) {
      Ids got, expected;
      for (std::size_t k = at; k < at + static_cast<std::size_t>(spec.experts_per_token); ++k) {
        got[result.topk_ids[k]] = result.topk_weights[k];
        expected[static_cast<std::int32_t>(ids[k])] = weights[k];
      }
      for (const auto& [id, weight] : expected) {
        ASSERT_TRUE(got.contains(id)) << "row " << at / static_cast<std::size_t>(spec.experts_per_token);
        EXPECT_NEAR(got[id], weight, 1e-5 * (1 + std::abs(weight)));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cases, GoldenTest, ::testing::ValuesIn(kGoldens),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace expertd
