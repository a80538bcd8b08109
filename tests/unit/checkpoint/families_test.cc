// Families, layouts and formats that have no golden case: small checkpoints named as published, read element by
// element.
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checkpoint/checkpoint.h"
#include "tests/unit/checkpoint/tiny_checkpoint.h"

namespace expertd {
namespace {

using ::expertd::testing::TempDir;
using ::expertd::testing::TinyCheckpoint;
using ::expertd::testing::TinyTensor;

constexpr std::int64_t kD = 32, kF = 16, kE = 4;

double Raw(const TinyTensor& tensor, std::int64_t index) {
  const DType dtype = tensor.dtype == "F32"       ? DType::kF32
                      : tensor.dtype == "F16"     ? DType::kF16
                      : tensor.dtype == "F8_E4M3" ? DType::kF8E4M3
                      : tensor.dtype == "U8"      ? DType::kU8
                                                  : DType::kBF16;
  return VectorView{.data = tensor.bytes.data(), .dtype = dtype, .size = index + 1}.At(index);
}

enum class Layout { kSeparate, kRows, kColumns };

struct Case {
  const char* name;
  const char* config;  // D, E and K as numbers below; NN stands for the family's name
  const char* routing;
  std::vector<std::int64_t> layers = {0};
  // Below prefix + "layers.<i>.".
  const char* router = "mlp.gate.weight";
  const char* correction = "";
  const char* experts = "mlp.experts.";
  std::vector<std::string> projections = {"gate_proj", "up_proj", "down_proj"};
  Layout layout = Layout::kSeparate;
  const char* shared = "";
  std::int64_t shared_width = 0;
  const char* shared_gate = "";
  const char* dtype = "BF16";
  const char* prefix = "model.";
  const char* family = "";  // as reported; empty: the part of `name` before a space
  Activation activation = Activation::kSilu;
};

std::string FamilyOf(const Case& c) {
  const std::string name = c.name;
  return *c.family != '\0' ? c.family : name.substr(0, name.find(' '));
}
void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

constexpr char kDeepseekKeys[] =
    R"("n_routed_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"n_shared_experts":2)";

const std::vector<Case>& Cases() {
  static const auto* cases = new std::vector<Case>{
      {.name = "minimax",
       .config = R"("num_local_experts":4,"num_experts_per_tok":2,"intermediate_size":16)",
       .routing = "softmax, top-2 of 4, renormalised",
       .layers = {0, 1, 10},
       .router = "block_sparse_moe.gate.weight",
       .experts = "block_sparse_moe.experts.",
       .projections = {"w1", "w3", "w2"}},
      {.name = "qwen3_5_moe_text",
       .config = R"("num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,
                    "shared_expert_intermediate_size":24,"norm_topk_prob":false)",
       .routing = "softmax, top-2 of 4, renormalised",
       .shared = "mlp.shared_expert.",
       .shared_width = 24,
       .shared_gate = "mlp.shared_expert_gate.weight"},
      {.name = "qwen3_5_moe stacked in a wrapper",
       .config = R"("vision_config":{"hidden_size":7},"text_config":{"model_type":"qwen3_5_moe_text","hidden_size":32,
                    "num_experts":4,"num_experts_per_tok":3,"moe_intermediate_size":16,
                    "shared_expert_intermediate_size":24})",
       .routing = "softmax, top-3 of 4, renormalised",
       .layout = Layout::kRows,
       .shared = "mlp.shared_expert.",
       .shared_width = 24,
       .shared_gate = "mlp.shared_expert_gate.weight",
       .prefix = "model.language_model."},
      {.name = "qwen3_moe under an unknown wrapper",
       .config = R"("model_type":"some_vision_model","text_config":{"model_type":"qwen3_moe","hidden_size":32,
                    "num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"hidden_act":"gelu"})",
       .routing = "softmax, top-2 of 4",
       .prefix = "language_model.model.",
       .activation = Activation::kGelu},
      {.name = "qwen3_moe by its alias in f16",
       .config = R"("num_local_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"norm_topk_prob":true,
                    "hidden_act":"gelu_pytorch_tanh")",
       .routing = "softmax, top-2 of 4, renormalised",
       .dtype = "F16",
       .activation = Activation::kGeluTanh},
      {.name = "qwen2_moe without shared expert",
       .config = R"("num_experts":4,"num_experts_per_tok":1,"moe_intermediate_size":16,"hidden_act":"relu",
                    "shared_expert_intermediate_size":0)",
       .routing = "softmax, top-1 of 4",
       .activation = Activation::kRelu},
      {.name = "olmoe in f32",
       .config = R"("num_experts":4,"num_experts_per_tok":4,"intermediate_size":16,"norm_topk_prob":true)",
       .routing = "softmax, top-4 of 4, renormalised",
       .dtype = "F32"},
      {.name = "flex_olmo",
       .config = R"("num_experts":4,"num_experts_per_tok":2,"intermediate_size":16)",
       .routing = "softmax, top-2 of 4"},
      {.name = "jamba",
       .config = R"("num_experts":4,"num_experts_per_tok":2,"intermediate_size":16,"expert_layer_period":2,
                    "expert_layer_offset":1)",
       .routing = "softmax, top-2 of 4",
       .layers = {1, 3},
       .router = "feed_forward.router.weight",
       .experts = "feed_forward.experts."},
      {.name = "deepseek_v2 greedy",
       .config = R"("n_routed_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"n_shared_experts":2,
                    "topk_method":"greedy","n_group":1,"topk_group":1,"norm_topk_prob":true)",
       .routing = "softmax, top-2 of 4",
       .shared = "mlp.shared_experts.",
       .shared_width = 32},
      {.name = "deepseek_v2 with null groups and no shared expert",
       .config = R"("n_routed_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"n_shared_experts":0,
                    "n_group":null,"topk_group":null,"routed_scaling_factor":3)",
       .routing = "softmax, top-2 of 4, times 3"},
      {.name = "deepseek_v3 in fp8",
       .config = R"("n_routed_experts":4,"num_experts_per_tok":1,"moe_intermediate_size":16,"n_shared_experts":2,
                    "n_group":2,"topk_group":1,"norm_topk_prob":false,"routed_scaling_factor":1.0,
                    "quantization_config":{"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,128]})",
       .routing = "sigmoid, top-1 of 4 from 1 of 2 groups, bias for choosing",
       .correction = "mlp.gate.e_score_correction_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 32,
       .dtype = "F8_E4M3"},
      {.name = "kimi_k2",
       .config = R"(DEEPSEEK,"n_group":1,"topk_group":1,"routed_scaling_factor":2.827)",
       .routing = "sigmoid, top-2 of 4, bias for choosing, renormalised, times 2.827",
       .correction = "mlp.gate.e_score_correction_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 32},
      {.name = "glm4_moe by its defaults",
       .config = R"("n_routed_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16)",
       .routing = "sigmoid, top-2 of 4, bias for choosing, renormalised",
       .correction = "mlp.gate.e_score_correction_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 16},
      {.name = "solar_open",
       .config = "DEEPSEEK",
       .routing = "sigmoid, top-2 of 4, bias for choosing, renormalised",
       .correction = "mlp.gate.e_score_correction_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 32},
      {.name = "dots1",
       .config = R"(DEEPSEEK,"routed_scaling_factor":2.5)",
       .routing = "sigmoid, top-2 of 4, bias for choosing, times 2.5",
       .correction = "mlp.gate.e_score_correction_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 32},
      {.name = "exaone_moe",
       .config = R"("num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"num_shared_experts":1)",
       .routing = "sigmoid, top-2 of 4, bias for choosing, renormalised, times 2.5",
       .layers = {1, 2},
       .correction = "mlp.e_score_correction_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 16},
      {.name = "kimi_linear by its aliases",
       .config = R"("num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"num_shared_experts":2,
                    "num_expert_group":2,"topk_group":1,"moe_renormalize":false,"routed_scaling_factor":1.5)",
       .routing = "sigmoid, top-2 of 4 from 1 of 2 groups, bias for choosing, times 1.5",
       .router = "block_sparse_moe.gate.weight",
       .correction = "block_sparse_moe.gate.e_score_correction_bias",
       .experts = "block_sparse_moe.experts.",
       .projections = {"w1", "w3", "w2"},
       .shared = "block_sparse_moe.shared_experts.",
       .shared_width = 32},
      {.name = "afmoe",
       .config = R"("num_experts":4,"num_experts_per_tok":2,"moe_intermediate_size":16,"num_shared_experts":1,
                    "route_scale":2.826,"num_dense_layers":2)",
       .routing = "sigmoid, top-2 of 4, bias for choosing, renormalised, times 2.826",
       .layers = {2},
       .router = "mlp.router.gate.weight",
       .correction = "mlp.expert_bias",
       .shared = "mlp.shared_experts.",
       .shared_width = 16},
      {.name = "llama4 wrapper",
       .config = R"("text_config":{"model_type":"llama4_text","hidden_size":32,"num_local_experts":4,
                    "num_experts_per_tok":2,"intermediate_size":16,"intermediate_size_mlp":64})",
       .routing = "raw logits, top-2 of 4, sigmoid of the chosen, weight on the input",
       .layers = {1, 3},
       .router = "feed_forward.router.weight",
       .experts = "feed_forward.experts.",
       .layout = Layout::kColumns,
       .shared = "feed_forward.shared_expert.",
       .shared_width = 16,
       .prefix = "language_model.model."},
      {.name = "granitemoe",
       .config = R"("num_local_experts":4,"num_experts_per_tok":2,"intermediate_size":16)",
       .routing = "raw logits, top-2 of 4, softmax of the chosen",
       .router = "block_sparse_moe.router.layer.weight",
       .experts = "block_sparse_moe.",
       .projections = {"input_linear.weight", "", "output_linear.weight"},
       .layout = Layout::kRows},
      {.name = "hunyuan_v1_moe with a list",
       .config = R"("num_experts":4,"moe_topk":[9,3,3],"intermediate_size":16)",
       .routing = "softmax, top-3 of 4, renormalised",
       .layers = {1, 2},
       .router = "mlp.gate.wg.weight",
       .shared = "mlp.shared_mlp.",
       .shared_width = 16},
      {.name = "hunyuan_v1_moe with a number",
       .config = R"("num_experts":4,"moe_topk":1,"intermediate_size":16)",
       .routing = "softmax, top-1 of 4, renormalised",
       .router = "mlp.gate.wg.weight",
       .shared = "mlp.shared_mlp.",
       .shared_width = 16},
      {.name = "ernie4_5_moe without shared expert",
       .config = R"("moe_num_experts":4,"moe_k":2,"moe_intermediate_size":16,"moe_num_shared_experts":0)",
       .routing = "softmax, top-2 of 4, bias for choosing, renormalised",
       .correction = "mlp.moe_statics.e_score_correction_bias"},
      {.name = "phimoe",
       .config = R"("num_local_experts":4,"num_experts_per_tok":2,"intermediate_size":16)",
       .routing = "raw logits, top-2 of 4, sparse mixer",
       .router = "block_sparse_moe.gate.weight",
       .experts = "block_sparse_moe.experts.",
       .projections = {"w1", "w3", "w2"}},
  };
  return *cases;
}

TinyCheckpoint Build(const Case& c) {
  TinyCheckpoint checkpoint;
  const std::string keys = absl::StrReplaceAll(c.config, {{"DEEPSEEK", kDeepseekKeys}});
  const bool names_itself = keys.find("\"model_type\":\"some") != std::string::npos;
  checkpoint.config =
      absl::StrCat("{", names_itself ? "" : absl::StrCat("\"model_type\":\"", FamilyOf(c), "\","),
                   keys.find("text_config") == std::string::npos ? "\"hidden_size\":32," : "", keys, "}");
  const std::string plain = std::string(c.dtype) == "F8_E4M3" ? "BF16" : c.dtype;
  for (const std::int64_t layer : c.layers) {
    const std::string at = absl::StrCat(c.prefix, "layers.", layer, ".");
    checkpoint.Add(at + c.router, {kE, kD}, plain);
    if (*c.correction != '\0') {
      const bool ernie = FamilyOf(c) == "ernie4_5_moe";
      checkpoint.Add(at + c.correction, ernie ? std::vector<std::int64_t>{1, kE} : std::vector<std::int64_t>{kE},
                     "F32");
    }
    if (c.layout == Layout::kSeparate) {
      for (std::int64_t e = 0; e < kE; ++e) {
        checkpoint.AddExpert(absl::StrCat(at, c.experts, e), kD, kF, c.dtype, c.projections);
      }
    } else {
      const bool granite = c.projections[1].empty(), rows = c.layout == Layout::kRows;
      checkpoint.Add(absl::StrCat(at, c.experts, granite ? c.projections[0] : "gate_up_proj"),
                     {kE, rows ? 2 * kF : kD, rows ? kD : 2 * kF}, c.dtype);
      checkpoint.Add(absl::StrCat(at, c.experts, granite ? c.projections[2] : "down_proj"),
                     {kE, rows ? kD : kF, rows ? kF : kD}, c.dtype);
    }
    if (c.shared_width > 0) {
      std::string shared = at + c.shared;
      shared.pop_back();
      checkpoint.AddExpert(shared, kD, c.shared_width, c.dtype);
    }
    if (*c.shared_gate != '\0') checkpoint.Add(at + c.shared_gate, {1, kD});
  }
  // What is no layer of the language model, or no MoE layer.
  checkpoint.Add("mtp.layers.0.mlp.gate.weight", {kE, kD});
  checkpoint.Add("model.visual.layers.0.mlp.experts.0.gate_proj.weight", {kF, kD});
  checkpoint.Add(absl::StrCat(c.prefix, "layers.20.mlp.gate_proj.weight"), {kF, kD});
  checkpoint.Add(absl::StrCat(c.prefix, "layers.20.feed_forward.gate_proj.weight"), {kF, kD});
  checkpoint.Add(absl::StrCat(c.prefix, "layers.20.block_sparse_moe.gate_proj.weight"), {kF, kD});
  return checkpoint;
}

// Calls check(got, want) for every element of every expert of the layer.
void ForEachWeight(const Case& c, const TinyCheckpoint& files, const LayerSource& source, std::int64_t layer,
                   const std::function<void(double, double)>& check) {
  const std::string at = absl::StrCat(c.prefix, "layers.", layer, ".");
  for (std::int64_t e = 0; e < kE; ++e) {
    const ExpertWeights expert = source.expert(e);
    const WeightView* views[] = {&expert.gate, &expert.up, &expert.down};
    for (std::size_t m = 0; m < 3; ++m) {
      const bool down = m == 2;
      const std::int64_t out = down ? kD : kF, in = down ? kF : kD;
      ASSERT_EQ(views[m]->out, out);
      ASSERT_EQ(views[m]->in, in);
      for (std::int64_t o = 0; o < out; ++o) {
        for (std::int64_t i = 0; i < in; ++i) {
          double want;
          if (c.layout == Layout::kSeparate) {
            const std::string name = absl::StrCat(at, c.experts, e, ".", c.projections[m], ".weight");
            want = Raw(files.tensors.at(name), o * in + i);
            const auto scale = files.tensors.find(name + "_scale_inv");
            if (scale != files.tensors.end()) want *= Raw(scale->second, 0);
          } else {
            const bool granite = c.projections[1].empty();
            const std::string name = absl::StrCat(at, c.experts,
                                                  granite ? c.projections[m == 2 ? 2 : 0]
                                                  : down  ? "down_proj"
                                                          : "gate_up_proj");
            const std::int64_t rows = down ? kD : 2 * kF, row = o + (m == 1 ? kF : 0);
            const std::int64_t in_expert = c.layout == Layout::kRows ? row * in + i : i * rows + row;
            want = Raw(files.tensors.at(name), e * rows * in + in_expert);
          }
          check(views[m]->At(o, i), want);
        }
      }
    }
  }
}

class FamilyTest : public ::testing::TestWithParam<Case> {};

TEST_P(FamilyTest, SpecAndEveryWeightAreRead) {
  const Case& c = GetParam();
  const TinyCheckpoint files = Build(c);
  const TempDir dir;
  files.Write(dir.path());
  auto checkpoint = Checkpoint::Open(dir.path(), {.model = "m"});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->family(), FamilyOf(c));
  ASSERT_TRUE((*checkpoint)->unsupported().empty()) << (*checkpoint)->unsupported()[0].reason;
  ASSERT_EQ((*checkpoint)->layers().size(), c.layers.size());
  for (std::size_t n = 0; n < c.layers.size(); ++n) {
    const LayerSpec& spec = (*checkpoint)->layers()[n];
    EXPECT_EQ(spec.Name(), absl::StrCat("m/", c.layers[n]));
    EXPECT_EQ(spec.RoutingInWords(), c.routing);
    EXPECT_EQ(spec.shared_intermediate_size, c.shared_width);
    EXPECT_EQ(spec.shared_gated, *c.shared_gate != '\0');
    EXPECT_EQ(spec.activation, c.activation);
    auto source = (*checkpoint)->OpenLayer(c.layers[n]);
    ASSERT_TRUE(source.ok()) << source.status();
    std::int64_t wrong = 0;
    ForEachWeight(c, files, **source, c.layers[n], [&](double got, double want) { wrong += got != want; });
    EXPECT_EQ(wrong, 0);
    const std::string at = absl::StrCat(c.prefix, "layers.", c.layers[n], ".");
    const RouterWeights router = (*source)->router();
    for (std::int64_t e = 0; e < kE; ++e) {
      EXPECT_EQ(router.weight.At(e, 5), Raw(files.tensors.at(at + c.router), e * kD + 5));
      if (*c.correction != '\0') {
        EXPECT_EQ(router.correction_bias.At(e), Raw(files.tensors.at(at + c.correction), e));
      }
    }
    EXPECT_EQ(router.correction_bias.empty(), *c.correction == '\0');
    if (c.shared_width > 0) {
      const std::string name = absl::StrCat(at, c.shared, "down_proj.weight");
      const double scale = std::string(c.dtype) == "F8_E4M3" ? Raw(files.tensors.at(name + "_scale_inv"), 0) : 1;
      EXPECT_EQ((*source)->shared().down.At(3, 7), Raw(files.tensors.at(name), 3 * c.shared_width + 7) * scale);
    }
    if (*c.shared_gate != '\0') {
      EXPECT_EQ((*source)->shared_gate().At(9), Raw(files.tensors.at(at + c.shared_gate), 9));
    }
  }
}

// The same weights in one file, in shards, and at odd addresses are the same layer.
TEST_P(FamilyTest, ShardsAndUnalignedFilesAreTheSameLayer) {
  const Case& c = GetParam();
  const TinyCheckpoint files = Build(c);
  std::string first;
  for (const auto& [shards, pad] :
       std::vector<std::pair<int, std::size_t>>{{1, 0}, {3, 0}, {1, 1}, {1, 2}, {2, 3}, {1, 4}}) {
    const TempDir dir;
    files.Write(dir.path(), shards, pad);
    auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    auto source = (*checkpoint)->OpenLayer(c.layers[0]);
    checkpoint->reset();  // the layer keeps the files
    ASSERT_TRUE(source.ok()) << source.status();
    std::int64_t wrong = 0;
    ForEachWeight(c, files, **source, c.layers[0], [&](double got, double want) { wrong += got != want; });
    EXPECT_EQ(wrong, 0);
    for (std::int64_t e = 0; e < kE; e += 2) (*source)->Release(e);
    auto fingerprint = (*source)->Fingerprint();
    ASSERT_TRUE(fingerprint.ok());
    if (first.empty()) first = *fingerprint;
    EXPECT_EQ(*fingerprint, first);
    ForEachWeight(c, files, **source, c.layers[0], [&](double got, double want) { wrong += got != want; });
    EXPECT_EQ(wrong, 0) << "after Release";
  }
}

INSTANTIATE_TEST_SUITE_P(Families, FamilyTest, ::testing::ValuesIn(Cases()), [](const auto& info) {
  return absl::StrReplaceAll(info.param.name, {{" ", "_"}});
});

Case ByName(const std::string& name) {
  for (const Case& c : Cases()) {
    if (name == c.name) return c;
  }
  ADD_FAILURE() << name;
  return {};
}

std::string FingerprintOf(const TinyCheckpoint& files, std::int64_t layer) {
  const TempDir dir;
  files.Write(dir.path());
  auto checkpoint = Checkpoint::Open(dir.path());
  EXPECT_TRUE(checkpoint.ok()) << checkpoint.status();
  if (!checkpoint.ok()) return "";
  auto source = (*checkpoint)->OpenLayer(layer);
  EXPECT_TRUE(source.ok()) << source.status();
  return source.ok() ? *(*source)->Fingerprint() : "";
}

TEST(FingerprintTest, EveryTensorAndTheRuleCount) {
  const Case c = ByName("qwen3_5_moe_text");
  const TinyCheckpoint files = Build(c);
  const std::string base = FingerprintOf(files, 0);
  EXPECT_EQ(base.size(), 32u);
  EXPECT_EQ(FingerprintOf(files, 0), base);
  for (const char* name : {"mlp.gate.weight", "mlp.experts.0.gate_proj.weight", "mlp.experts.3.down_proj.weight",
                           "mlp.shared_expert.up_proj.weight", "mlp.shared_expert_gate.weight"}) {
    TinyCheckpoint changed = files;
    std::string& bytes = changed.tensors.at(absl::StrCat("model.layers.0.", name)).bytes;
    bytes.back() = static_cast<char>(bytes.back() ^ 1);
    EXPECT_NE(FingerprintOf(changed, 0), base) << name;
  }
  TinyCheckpoint swapped = files;
  std::swap(swapped.tensors.at("model.layers.0.mlp.experts.1.gate_proj.weight").bytes,
            swapped.tensors.at("model.layers.0.mlp.experts.2.gate_proj.weight").bytes);
  EXPECT_NE(FingerprintOf(swapped, 0), base);
  TinyCheckpoint more = files;
  more.config = absl::StrReplaceAll(more.config, {{"\"num_experts_per_tok\":2", "\"num_experts_per_tok\":3"}});
  EXPECT_NE(FingerprintOf(more, 0), base);
  TinyCheckpoint other = files;
  other.Add("lm_head.weight", {3, kD});
  EXPECT_EQ(FingerprintOf(other, 0), base) << "no tensor of this layer";
}

TEST(FormatTest, Bf16BlockScalesAndOddBlocksAreWidened) {
  TinyCheckpoint files;
  files.config = R"({"model_type":"qwen3_moe","hidden_size":160,"num_experts":1,"num_experts_per_tok":1,
      "moe_intermediate_size":130,"quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]}})";
  files.Add("model.layers.0.mlp.gate.weight", {1, 160}, "F32");
  files.AddExpert("model.layers.0.mlp.experts.0", 160, 130, "F8_E4M3");
  const std::string up = "model.layers.0.mlp.experts.0.up_proj.weight";
  files.Add(up + "_scale_inv", {2, 2}, "BF16");
  for (const std::size_t pad : {0, 1}) {
    const TempDir dir;
    files.Write(dir.path(), 1, pad);
    auto checkpoint = Checkpoint::Open(dir.path());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    EXPECT_EQ((*checkpoint)->layers()[0].expert_format, WeightFormat::kFp8Block128);
    auto source = (*checkpoint)->OpenLayer(0);
    ASSERT_TRUE(source.ok()) << source.status();
    const TinyTensor& codes = files.tensors.at(up);
    const TinyTensor& scales = files.tensors.at(up + "_scale_inv");
    for (const auto& [o, i] :
         std::vector<std::pair<int, int>>{{0, 0}, {127, 127}, {127, 128}, {128, 127}, {129, 159}}) {
      EXPECT_EQ((*source)->expert(0).up.At(o, i), Raw(codes, o * 160 + i) * Raw(scales, o / 128 * 2 + i / 128));
    }
  }
}

TEST(FormatTest, ExpertsMayBeQuantisedWhileTheSharedOneIsNot) {
  Case c = ByName("deepseek_v3 in fp8");
  TinyCheckpoint files = Build(c);
  files.AddExpert("model.layers.0.mlp.shared_experts", kD, 32, "F32");
  const TempDir dir;
  files.Write(dir.path());
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->layers()[0].expert_format, WeightFormat::kFp8Block128);
  EXPECT_EQ((*checkpoint)->layers()[0].shared_format, WeightFormat::kF32);
}

TEST(FormatTest, Mxfp4InterleavesRowsAndBiases) {
  const std::int64_t d = 64, f = 32, e = 2;
  TinyCheckpoint files;
  files.config = R"({"model_type":"gpt_oss","hidden_size":64,"num_local_experts":2,"num_experts_per_tok":2,
      "intermediate_size":32,"swiglu_limit":5.0,"quantization_config":{"quant_method":"mxfp4"}})";
  const std::string at = "model.layers.0.mlp.";
  files.Add(at + "router.weight", {e, d});
  files.Add(at + "router.bias", {e});
  files.Add(at + "experts.gate_up_proj_blocks", {e, 2 * f, d / 32, 16}, "U8");
  files.Add(at + "experts.gate_up_proj_scales", {e, 2 * f, d / 32}, "U8");
  files.Add(at + "experts.gate_up_proj_bias", {e, 2 * f});
  files.Add(at + "experts.down_proj_blocks", {e, d, f / 32, 16}, "U8");
  files.Add(at + "experts.down_proj_scales", {e, d, f / 32}, "U8");
  files.Add(at + "experts.down_proj_bias", {e, d});
  const TempDir dir;
  files.Write(dir.path(), 1, 1);
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  const LayerSpec& spec = (*checkpoint)->layers()[0];
  EXPECT_EQ(spec.expert_format, WeightFormat::kMxfp4);
  EXPECT_EQ(spec.activation, Activation::kSwigluOai);
  EXPECT_EQ(spec.swiglu_limit, 5.0f);
  EXPECT_TRUE(spec.expert_bias);
  auto source = (*checkpoint)->OpenLayer(0);
  ASSERT_TRUE(source.ok()) << source.status();
  const auto value = [&](const std::string& stem, std::int64_t rows, std::int64_t in, std::int64_t x, std::int64_t row,
                         std::int64_t i) {
    const auto& blocks = files.tensors.at(at + stem + "_blocks").bytes;
    const auto& scales = files.tensors.at(at + stem + "_scales").bytes;
    const auto byte = static_cast<std::uint8_t>(blocks[static_cast<std::size_t>(((x * rows + row) * in + i) / 2)]);
    const auto scale =
        static_cast<std::uint8_t>(scales[static_cast<std::size_t>((x * rows + row) * (in / 32) + i / 32)]);
    return double{F4E2M1ToF32(i % 2 == 0 ? byte & 15 : byte >> 4)} * E8M0ToF32(scale);
  };
  for (std::int64_t x = 0; x < e; ++x) {
    const ExpertWeights expert = (*source)->expert(x);
    const TinyTensor& bias = files.tensors.at(at + "experts.gate_up_proj_bias");
    for (std::int64_t o = 0; o < f; ++o) {
      EXPECT_EQ(expert.gate_bias.At(o), Raw(bias, x * 2 * f + 2 * o));
      EXPECT_EQ(expert.up_bias.At(o), Raw(bias, x * 2 * f + 2 * o + 1));
      for (std::int64_t i = 0; i < d; ++i) {
        ASSERT_EQ(expert.gate.At(o, i), value("experts.gate_up_proj", 2 * f, d, x, 2 * o, i));
        ASSERT_EQ(expert.up.At(o, i), value("experts.gate_up_proj", 2 * f, d, x, 2 * o + 1, i));
        ASSERT_EQ(expert.down.At(i, o), value("experts.down_proj", d, f, x, i, o));
      }
    }
    EXPECT_EQ(expert.down_bias.At(63), Raw(files.tensors.at(at + "experts.down_proj_bias"), x * d + 63));
  }
}

TEST(FormatTest, BiasesOfSeparateExpertsAreRead) {
  const Case c = ByName("ernie4_5_moe without shared expert");
  TinyCheckpoint files = Build(c);
  for (std::int64_t e = 0; e < kE; ++e) {
    const std::string at = absl::StrCat("model.layers.0.mlp.experts.", e);
    files.Add(at + ".gate_proj.bias", {kF});
    files.Add(at + ".up_proj.bias", {kF});
    files.Add(at + ".down_proj.bias", {kD});
  }
  const TempDir dir;
  files.Write(dir.path());
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->layers()[0].expert_bias);
  auto source = (*checkpoint)->OpenLayer(0);
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->expert(2).up_bias.At(3), Raw(files.tensors.at("model.layers.0.mlp.experts.2.up_proj.bias"), 3));
}

TEST(FamilyChoiceTest, OverrideReplacesWhatConfigSays) {
  const Case c = ByName("flex_olmo");
  TinyCheckpoint files = Build(c);
  files.config = absl::StrReplaceAll(files.config, {{"flex_olmo", "my_finetune"}});
  const TempDir dir;
  files.Write(dir.path());
  EXPECT_EQ(Checkpoint::Open(dir.path()).status().code(), absl::StatusCode::kInvalidArgument);
  auto checkpoint = Checkpoint::Open(dir.path() + "/", {.family = "olmoe"});
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_EQ((*checkpoint)->family(), "olmoe");
  EXPECT_EQ((*checkpoint)->layers()[0].model, std::filesystem::path(dir.path()).filename());
  EXPECT_EQ((*checkpoint)->OpenLayer(5).status().code(), absl::StatusCode::kNotFound);
}

TEST(FamilyChoiceTest, SingleFileIsPreferredAndStrayTensorsOfShardsArePassedOver) {
  const Case c = ByName("olmoe in f32");
  const TinyCheckpoint files = Build(c);
  const TempDir dir;
  files.Write(dir.path(), 2);
  // The first shard holds a tensor that the index does not name.
  auto shard = files.tensors;
  for (auto it = shard.begin(); it != shard.end();) {
    it = std::distance(files.tensors.begin(), files.tensors.find(it->first)) % 2 == 1 ? shard.erase(it) : std::next(it);
  }
  shard["stray"] = {.dtype = "U8", .shape = {1}, .bytes = "x"};
  expertd::testing::WriteFile(dir.path() + "/model-00001-of-00002.safetensors",
                              expertd::testing::SafetensorsBytes(shard));
  EXPECT_TRUE(Checkpoint::Open(dir.path()).ok()) << Checkpoint::Open(dir.path()).status();
  expertd::testing::WriteFile(dir.path() + "/model.safetensors.index.json", "broken");
  EXPECT_FALSE(Checkpoint::Open(dir.path()).ok());
  expertd::testing::WriteFile(dir.path() + "/model.safetensors", expertd::testing::SafetensorsBytes(files.tensors));
  EXPECT_TRUE(Checkpoint::Open(dir.path()).ok());
}

}  // namespace
}  // namespace expertd
