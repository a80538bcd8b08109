// Broken checkpoints: each is refused with a code and a message that names file, tensor or key and the reason, and the
// intact one opens afterwards. What a safetensors file alone can have wrong is in safetensors_test.cc.
#include <cmath>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/checkpoint/checkpoint.h"
#include "tests/unit/checkpoint/tiny_checkpoint.h"

namespace expertd {
namespace {

using ::expertd::testing::ReadFile;
using ::expertd::testing::SafetensorsBytes;
using ::expertd::testing::TempDir;
using ::expertd::testing::TinyCheckpoint;
using ::expertd::testing::WriteFile;
using ::testing::HasSubstr;

constexpr char kAt[] = "model.layers.0.mlp.";
std::string Name(const std::string& rest) { return kAt + rest; }

// deepseek_v3 with all that a layer can have: groups, correction bias, shared expert.
TinyCheckpoint DeepSeek(const std::string& dtype) {
  TinyCheckpoint files;
  files.config = absl::StrCat(
      R"({"model_type":"deepseek_v3","hidden_size":32,"n_routed_experts":4,"num_experts_per_tok":2,)",
      R"("moe_intermediate_size":16,"n_shared_experts":1,"n_group":2,"topk_group":1,"routed_scaling_factor":2.5,)",
      R"("norm_topk_prob":true,"hidden_act":"silu")",
      dtype == "F8_E4M3" ? R"(,"quantization_config":{"quant_method":"fp8","fmt":"e4m3","weight_block_size":[128,128]})"
                         : "",
      "}");
  files.Add(Name("gate.weight"), {4, 32});
  files.Add(Name("gate.e_score_correction_bias"), {4}, "F32");
  for (int e = 0; e < 4; ++e) files.AddExpert(Name(absl::StrCat("experts.", e)), 32, 16, dtype);
  files.AddExpert(Name("shared_experts"), 32, 16, dtype);
  files.Add("model.norm.weight", {32});
  return files;
}

TinyCheckpoint GptOss() {
  TinyCheckpoint files;
  files.config = R"({"model_type":"gpt_oss","hidden_size":32,"num_local_experts":2,"num_experts_per_tok":1,
      "intermediate_size":32,"quantization_config":{"quant_method":"mxfp4"}})";
  files.Add(Name("router.weight"), {2, 32});
  files.Add(Name("router.bias"), {2});
  for (const std::string stem : {"gate_up_proj", "down_proj"}) {
    const std::int64_t rows = stem == "down_proj" ? 32 : 64;
    files.Add(Name("experts." + stem + "_blocks"), {2, rows, 1, 16}, "U8");
    files.Add(Name("experts." + stem + "_scales"), {2, rows, 1}, "U8");
    files.Add(Name("experts." + stem + "_bias"), {2, rows});
  }
  return files;
}

TinyCheckpoint Llama4() {
  TinyCheckpoint files;
  files.config = R"({"model_type":"llama4_text","hidden_size":32,"num_local_experts":2,"num_experts_per_tok":1,
      "intermediate_size":16})";
  const std::string at = "model.layers.0.feed_forward.";
  files.Add(at + "router.weight", {2, 32});
  files.Add(at + "experts.gate_up_proj", {2, 32, 32});
  files.Add(at + "experts.down_proj", {2, 16, 32});
  files.AddExpert(at + "shared_expert", 32, 16);
  return files;
}

enum class Base { kBf16, kFp8, kMxfp4, kLlama4 };

TinyCheckpoint Intact(Base base) {
  switch (base) {
    case Base::kBf16:
      return DeepSeek("BF16");
    case Base::kFp8:
      return DeepSeek("F8_E4M3");
    case Base::kMxfp4:
      return GptOss();
    case Base::kLlama4:
      return Llama4();
  }
  return {};
}

// What a case does: change the checkpoint before it is written, or the folder afterwards.
struct Broken {
  const char* name;
  Base base;
  int shards;
  std::function<void(TinyCheckpoint&)> change;
  std::function<void(const std::string& dir)> damage;
  absl::StatusCode code;
  std::vector<std::string> message;
};
void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }

std::function<void(TinyCheckpoint&)> Config(const std::string& from, const std::string& to) {
  return [=](TinyCheckpoint& files) {
    ASSERT_TRUE(absl::StrContains(files.config, from)) << from;
    files.config = absl::StrReplaceAll(files.config, {{from, to}});
  };
}
std::function<void(TinyCheckpoint&)> Without(const std::string& name) {
  return [=](TinyCheckpoint& files) { ASSERT_EQ(files.tensors.erase(name), 1u) << name; };
}
std::function<void(TinyCheckpoint&)> With(const std::string& name, std::vector<std::int64_t> shape,
                                          const std::string& dtype = "BF16") {
  return [=](TinyCheckpoint& files) { files.Add(name, shape, dtype); };
}
std::function<void(const std::string&)> File(const std::string& name, const std::string& bytes) {
  return [=](const std::string& dir) { WriteFile(dir + "/" + name, bytes); };
}
std::function<void(const std::string&)> Remove(const std::string& name) {
  return [=](const std::string& dir) { ASSERT_TRUE(std::filesystem::remove(dir + "/" + name)); };
}
std::function<void(const std::string&)> Replace(const std::string& name, const std::string& from,
                                                const std::string& to) {
  return [=](const std::string& dir) {
    const std::string text = ReadFile(dir + "/" + name);
    ASSERT_TRUE(absl::StrContains(text, from)) << from;
    WriteFile(dir + "/" + name, absl::StrReplaceAll(text, {{from, to}}));
  };
}
// Writes the four bytes at the tensor's end.
std::function<void(TinyCheckpoint&)> LastFloat(const std::string& name, float value) {
  return [=](TinyCheckpoint& files) {
    std::string& bytes = files.tensors.at(name).bytes;
    bytes.replace(bytes.size() - 4, 4, reinterpret_cast<const char*>(&value), 4);
  };
}

constexpr char kIndex[] = "model.safetensors.index.json";
constexpr char kShard1[] = "model-00001-of-00002.safetensors";
constexpr char kShard2[] = "model-00002-of-00002.safetensors";
constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kNotFound = absl::StatusCode::kNotFound;

const std::vector<Broken>& Cases() {
  const auto key = [](const char* name, const std::string& from, const std::string& to,
                      std::vector<std::string> message) {
    return Broken{name, Base::kBf16, 1, Config(from, to), nullptr, kInvalid, std::move(message)};
  };
  const auto tensor = [](const char* name, Base base, std::function<void(TinyCheckpoint&)> change,
                         std::vector<std::string> message) {
    return Broken{name, base, 1, std::move(change), nullptr, kInvalid, std::move(message)};
  };
  const auto file = [](const char* name, int shards, std::function<void(const std::string&)> damage,
                       std::vector<std::string> message, absl::StatusCode code = kInvalid) {
    return Broken{name, Base::kBf16, shards, nullptr, std::move(damage), code, std::move(message)};
  };
  static const auto* cases = new std::vector<Broken>{
      // The folder and its files.
      file("NoConfig", 1, Remove("config.json"), {"config.json: cannot be opened"}, kNotFound),
      file("NoWeights", 1, Remove("model.safetensors"),
           {"holds neither model.safetensors nor model.safetensors.index.json"}, kNotFound),
      file("ConfigEmpty", 1, File("config.json", ""), {"config.json: not valid JSON at byte"}),
      file("ConfigNoJson", 1, File("config.json", "model: olmoe"), {"config.json: not valid JSON at byte"}),
      file("ConfigArray", 1, File("config.json", "[]"), {"config.json: not an object"}),
      file("ConfigDuplicateKey", 1, File("config.json", R"({"hidden_size":1,"hidden_size":2})"),
           {"config.json: duplicate key \"hidden_size\""}),
      file("ConfigDuplicateKeyDeep", 1, File("config.json", R"({"a":[{"b":{"c":1,"c":2}}]})"),
           {"config.json: duplicate key \"c\""}),
      file("FileTruncated", 1,
           [](const std::string& dir) { std::filesystem::resize_file(dir + "/model.safetensors", 6000); },
           {"model.safetensors: ", "truncated?"}),
      file("FileEmpty", 1, File("model.safetensors", ""), {"model.safetensors: 0 bytes do not hold a header length"}),
      file("HeaderTooLong", 1, File("model.safetensors", "\xff\xff\xff\x7f" + std::string(4, '\0') + "{}"),
           {"model.safetensors: header of 2147483647 bytes, at most 100000000 are allowed"}),
      file("OffsetsChanged", 1, Replace("model.safetensors", "\"data_offsets\":[0,", "\"data_offsets\":[2,"),
           {"model.safetensors: tensor model.layers.0.mlp.experts.0.down_proj.weight: shape [32, 16] x bf16 wants "
            "1024"}),
      // The index.
      file("IndexNoJson", 2, File(kIndex, "{"), {"model.safetensors.index.json: not valid JSON"}),
      file("IndexNoMap", 2, File(kIndex, "{}"), {"model.safetensors.index.json: weight_map: missing or not an object"}),
      file("IndexMapArray", 2, File(kIndex, R"({"weight_map":[]})"), {"weight_map: missing or not an object"}),
      file("IndexShardNumber", 2, File(kIndex, R"({"weight_map":{"a":1}})"),
           {"model.safetensors.index.json: tensor a: its shard is not a string"}),
      file("IndexDuplicateTensor", 2, File(kIndex, R"({"weight_map":{"a":"b.safetensors","a":"b.safetensors"}})"),
           {"model.safetensors.index.json: duplicate key \"a\""}),
      file("IndexPathTraversal", 2, File(kIndex, R"({"weight_map":{"a":"../secret.safetensors"}})"),
           {"tensor a: shard \"../secret.safetensors\" is not the name of a .safetensors file in this folder"}),
      file("IndexAbsolutePath", 2, File(kIndex, R"({"weight_map":{"a":"/etc/x.safetensors"}})"),
           {"tensor a: shard \"/etc/x.safetensors\" is not the name"}),
      file("IndexEmptyName", 2, File(kIndex, R"({"weight_map":{"a":""}})"), {"tensor a: shard \"\" is not the name"}),
      file("IndexOtherFile", 2, File(kIndex, R"({"weight_map":{"a":"config.json"}})"),
           {"tensor a: shard \"config.json\" is not the name"}),
      file("IndexNulInName", 2, File(kIndex, R"({"weight_map":{"a":"x\u0000.safetensors"}})"),
           {"tensor a: shard \"x\\000.safetensors\" is not the name"}),
      file("ShardMissing", 2, Remove(kShard2), {absl::StrCat(kShard2, ": missing, but ", kIndex, " places tensor ")}),
      file("ShardTruncated", 2,
           [](const std::string& dir) { std::filesystem::resize_file(absl::StrCat(dir, "/", kShard1), 1000); },
           {absl::StrCat(kShard1,
                         ": tensor model.layers.0.mlp.experts.0.down_proj.weight: data_offsets [0, 1024] do not lie")}),
      file("TensorListedButAbsent", 2, Replace(kIndex, "\"model.norm.weight\"", "\"model.norm.other\""),
           {"tensor model.norm.other: missing, but model.safetensors.index.json places it here"}),
      file("TensorInTwoShards", 2,
           [](const std::string& dir) {
             auto files = DeepSeek("BF16");
             WriteFile(absl::StrCat(dir, "/", kShard1), SafetensorsBytes(files.tensors));
           },
           {absl::StrCat(kShard1, ": tensor model.layers.0.mlp.experts.0.gate_proj.weight: also in ", kShard2)}),
      // Values of config.json.
      key("NoModelType", "\"model_type\"", "\"kind\"", {"config.json: model_type: missing; known: mixtral, minimax, "}),
      key("UnknownModelType", "deepseek_v3", "gpt2",
          {"config.json: model_type: \"gpt2\" is unknown; known: mixtral, "}),
      key("NoHiddenSize", "\"hidden_size\"", "\"hidden\"", {"config.json: hidden_size: missing"}),
      key("NoExpertCount", "\"n_routed_experts\"", "\"experts\"",
          {"config.json: n_routed_experts or num_experts or num_local_experts: missing"}),
      key("NullTopK", "\"num_experts_per_tok\":2", "\"num_experts_per_tok\":null",
          {"config.json: num_experts_per_tok: missing"}),
      key("TextHiddenSize", "\"hidden_size\":32", "\"hidden_size\":\"32\"",
          {"config.json: hidden_size: \"32\" is no 64-bit integer"}),
      key("FractionalTopK", "\"num_experts_per_tok\":2", "\"num_experts_per_tok\":2.5",
          {"config.json: num_experts_per_tok: 2.5 is no 64-bit integer"}),
      key("NegativeHiddenSize", "\"hidden_size\":32", "\"hidden_size\":-32",
          {"config.json: hidden_size: -32 is outside 1..65536"}),
      key("ZeroWidth", "\"moe_intermediate_size\":16", "\"moe_intermediate_size\":0",
          {"config.json: intermediate_size: 0 is outside 1..262144"}),
      key("AbsurdExpertCount", "\"n_routed_experts\":4", "\"n_routed_experts\":1000000000",
          {"config.json: num_experts: 1000000000 is outside 1..4096"}),
      key("SizeAbove63Bits", "\"n_routed_experts\":4", "\"n_routed_experts\":18446744073709551615",
          {"config.json: n_routed_experts: 18446744073709551615 is no 64-bit integer"}),
      key("SharedCountOverflows", "\"n_shared_experts\":1", "\"n_shared_experts\":4611686018427387904",
          {"config.json: n_shared_experts: 4611686018427387904 is outside 0..4096"}),
      key("NegativeSharedCount", "\"n_shared_experts\":1", "\"n_shared_experts\":-1",
          {"config.json: n_shared_experts: -1 is outside 0..4096"}),
      key("TopKAboveExperts", "\"num_experts_per_tok\":2", "\"num_experts_per_tok\":5",
          {"config.json: experts_per_token: 5 is outside 1..4"}),
      key("GroupsDoNotDivide", "\"n_group\":2", "\"n_group\":3", {"config.json: n_group: 3 does not divide 4 experts"}),
      key("ZeroGroups", "\"n_group\":2", "\"n_group\":0", {"config.json: n_group: 0 is outside 1..4"}),
      key("MoreGroupsChosenThanThere", "\"topk_group\":1", "\"topk_group\":3",
          {"config.json: topk_group: 3 is outside 1..2"}),
      key("NormIsText", "\"norm_topk_prob\":true", "\"norm_topk_prob\":\"yes\"",
          {"config.json: norm_topk_prob: \"yes\" is no boolean"}),
      key("ScaleIsHuge", "\"routed_scaling_factor\":2.5", "\"routed_scaling_factor\":1e300",
          {"config.json: routed_scaling_factor: 1e+300 is no f32 number"}),
      key("AliasesDisagree", "\"n_routed_experts\":4", "\"n_routed_experts\":4,\"num_experts\":8",
          {"config.json: n_routed_experts=4 and num_experts=8 disagree"}),
      key("ListTooShort", "\"num_experts_per_tok\":2", "\"num_experts_per_tok\":[]",
          {"config.json: num_experts_per_tok: a list of 0 values has none for layer 0"}),
      key("ExpertCountIsAnotherOne", "\"n_routed_experts\":4", "\"n_routed_experts\":8",
          {"model.safetensors: tensor model.layers.0.mlp.gate.weight: shape [4, 32], config.json asks for [8, 32]"}),
      // A layer's tensors.
      tensor("RouterMissing", Base::kBf16, Without(Name("gate.weight")),
             {"model.safetensors: tensor model.layers.0.mlp.gate.weight: missing"}),
      tensor("ExpertMissing", Base::kBf16, Without(Name("experts.2.up_proj.weight")),
             {"model.safetensors: tensor model.layers.0.mlp.experts.2.up_proj.weight: missing"}),
      tensor("FirstExpertMissing", Base::kBf16, Without(Name("experts.0.gate_proj.weight")),
             {"model.safetensors: tensor model.layers.0.mlp.experts.0.gate_proj.weight: missing"}),
      tensor("CorrectionBiasMissing", Base::kBf16, Without(Name("gate.e_score_correction_bias")),
             {"model.safetensors: tensor model.layers.0.mlp.gate.e_score_correction_bias: missing"}),
      tensor("SharedExpertMissing", Base::kBf16, Without(Name("shared_experts.down_proj.weight")),
             {"model.safetensors: tensor model.layers.0.mlp.shared_experts.down_proj.weight: missing"}),
      tensor("RouterTransposed", Base::kBf16, With(Name("gate.weight"), {32, 4}),
             {"model.safetensors: tensor model.layers.0.mlp.gate.weight: shape [32, 4], config.json asks for [4, 32]"}),
      tensor("ExpertTransposed", Base::kBf16, With(Name("experts.3.down_proj.weight"), {16, 32}),
             {"tensor model.layers.0.mlp.experts.3.down_proj.weight: shape [16, 32], config.json asks for [32, 16]"}),
      tensor("RouterOfRankOne", Base::kBf16, With(Name("gate.weight"), {128}),
             {"tensor model.layers.0.mlp.gate.weight: shape [128], config.json asks for [4, 32]"}),
      tensor("CorrectionBiasTooShort", Base::kBf16, With(Name("gate.e_score_correction_bias"), {3}),
             {"tensor model.layers.0.mlp.gate.e_score_correction_bias: shape [3], config.json asks for [4]"}),
      tensor(
          "SharedExpertTooWide", Base::kBf16, With(Name("shared_experts.gate_proj.weight"), {17, 32}),
          {"tensor model.layers.0.mlp.shared_experts.gate_proj.weight: shape [17, 32], config.json asks for [16, 32]"}),
      tensor("RouterOfIntegers", Base::kBf16, With(Name("gate.weight"), {4, 32}, "I64"),
             {"tensor model.layers.0.mlp.gate.weight: dtype i64 is none of bf16, f16, f32, f8_e4m3"}),
      tensor("ExpertOfIntegers", Base::kBf16, With(Name("experts.1.up_proj.weight"), {16, 32}, "U8"),
             {"tensor model.layers.0.mlp.experts.1.up_proj.weight: dtype u8 is none of"}),
      tensor("ExpertOfAnotherType", Base::kBf16, With(Name("experts.1.up_proj.weight"), {16, 32}, "F32"),
             {"tensor model.layers.0.mlp.experts.1.up_proj.weight: dtype f32, others of the same kind are bf16"}),
      tensor("CorrectionBiasOfIntegers", Base::kBf16, With(Name("gate.e_score_correction_bias"), {4}, "I64"),
             {"tensor model.layers.0.mlp.gate.e_score_correction_bias: dtype i64 is none of bf16, f16, f32"}),
      tensor("OneExpertTooMany", Base::kBf16, With(Name("experts.4.gate_proj.weight"), {16, 32}),
             {"tensor model.layers.0.mlp.experts.4.gate_proj.weight: config.json says 4 experts"}),
      tensor("UndeclaredRouterBias", Base::kBf16, With(Name("gate.bias"), {4}),
             {"tensor model.layers.0.mlp.gate.bias: family deepseek_v3 has no router bias"}),
      tensor("UndeclaredSharedExpert", Base::kBf16, Config("\"n_shared_experts\":1", "\"n_shared_experts\":0"),
             {"tensor model.layers.0.mlp.shared_experts.gate_proj.weight: config.json says that there is no shared "
              "expert"}),
      tensor("HalfOfTheBiases", Base::kBf16, With(Name("experts.0.gate_proj.bias"), {16}),
             {"model.safetensors: tensor model.layers.0.mlp.experts.0.up_proj.bias: missing"}),
      tensor(
          "SameLayerUnderTwoPrefixes", Base::kBf16, With("language_model.model.layers.0.mlp.gate.weight", {4, 32}),
          {"tensor model.layers.0.mlp.experts.0.down_proj.weight: layer 0 is also at language_model.model.layers.0."}),
      tensor("ScalesMissing", Base::kFp8, Without(Name("experts.1.down_proj.weight_scale_inv")),
             {"model.safetensors: tensor model.layers.0.mlp.experts.1.down_proj.weight_scale_inv: missing"}),
      tensor("ScalesOfAnotherShape", Base::kFp8, With(Name("experts.1.down_proj.weight_scale_inv"), {1, 2}, "F32"),
             {"tensor model.layers.0.mlp.experts.1.down_proj.weight_scale_inv: shape [1, 2], config.json asks for [1, "
              "1]"}),
      tensor("ScalesInF16", Base::kFp8, With(Name("experts.1.down_proj.weight_scale_inv"), {1, 1}, "F16"),
             {"tensor model.layers.0.mlp.experts.1.down_proj.weight_scale_inv: dtype f16 is neither f32 nor bf16"}),
      tensor("ScaleIsNan", Base::kFp8, LastFloat(Name("experts.3.up_proj.weight_scale_inv"), NAN),
             {"model.safetensors: tensor model.layers.0.mlp.experts.3.up_proj.weight_scale_inv: [0, 0]=nan is not "
              "finite"}),
      tensor("ScaleIsInfinite", Base::kFp8, LastFloat(Name("shared_experts.up_proj.weight_scale_inv"), INFINITY),
             {"tensor model.layers.0.mlp.shared_experts.up_proj.weight_scale_inv: [0, 0]=inf is not finite"}),
      tensor("Mxfp4ScaleIsNan", Base::kMxfp4,
             [](TinyCheckpoint& files) { files.tensors.at(Name("experts.down_proj_scales")).bytes[35] = '\xff'; },
             {"tensor model.layers.0.mlp.experts.down_proj_scales: [1, 3, 0]=255 is not a number"}),
      tensor("Mxfp4ScalesMissing", Base::kMxfp4, Without(Name("experts.gate_up_proj_scales")),
             {"model.safetensors: tensor model.layers.0.mlp.experts.gate_up_proj_scales: missing"}),
      tensor("Mxfp4BlocksOfAnotherShape", Base::kMxfp4, With(Name("experts.down_proj_blocks"), {2, 32, 2, 8}, "U8"),
             {"tensor model.layers.0.mlp.experts.down_proj_blocks: shape [2, 32, 2, 8], config.json asks for [2, 32, "
              "1, 16]"}),
      tensor("Mxfp4BlocksInF32", Base::kMxfp4, With(Name("experts.down_proj_blocks"), {2, 32, 1, 16}, "F32"),
             {"tensor model.layers.0.mlp.experts.down_proj_blocks: dtype f32 is not u8"}),
      tensor("Mxfp4OddWidth", Base::kMxfp4, Config("\"intermediate_size\":32", "\"intermediate_size\":40"),
             {"config.json: hidden_size 32 and intermediate_size 40 must be multiples of 32 in mxfp4"}),
      tensor("GptOssBiasMissing", Base::kMxfp4, Without(Name("experts.down_proj_bias")),
             {"model.safetensors: tensor model.layers.0.mlp.experts.down_proj_bias: missing"}),
      tensor("GptOssRouterBiasMissing", Base::kMxfp4, Without(Name("router.bias")),
             {"model.safetensors: tensor model.layers.0.mlp.router.bias: missing"}),
      tensor("StackedDownMissing", Base::kLlama4, Without("model.layers.0.feed_forward.experts.down_proj"),
             {"model.safetensors: tensor model.layers.0.feed_forward.experts.down_proj: missing"}),
      tensor("StackedOfTooFewExperts", Base::kLlama4,
             With("model.layers.0.feed_forward.experts.gate_up_proj", {1, 32, 32}),
             {"experts.gate_up_proj: shape [1, 32, 32], config.json asks for [2, 32, 32]"}),
      tensor("StackedOfTwoTypes", Base::kLlama4,
             With("model.layers.0.feed_forward.experts.down_proj", {2, 16, 32}, "F16"),
             {"experts.down_proj: dtype f16, others of the same kind are bf16"}),
  };
  return *cases;
}

// The first failure of opening the checkpoint and every layer of it.
absl::Status OpenAll(const std::string& dir) {
  auto checkpoint = Checkpoint::Open(dir);
  if (!checkpoint.ok()) return checkpoint.status();
  EXPECT_TRUE((*checkpoint)->unsupported().empty());
  EXPECT_FALSE((*checkpoint)->layers().empty());
  for (const LayerSpec& spec : (*checkpoint)->layers()) {
    if (auto layer = (*checkpoint)->OpenLayer(spec.layer); !layer.ok()) return layer.status();
  }
  return absl::OkStatus();
}

class BrokenCheckpointTest : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenCheckpointTest, IsRefusedAndTheIntactOneOpens) {
  const Broken& broken = GetParam();
  const TempDir dir;
  TinyCheckpoint files = Intact(broken.base);
  if (broken.change) broken.change(files);
  files.Write(dir.path(), broken.shards);
  if (broken.damage) broken.damage(dir.path());
  const absl::Status status = OpenAll(dir.path());
  EXPECT_EQ(status.code(), broken.code) << status;
  for (const std::string& part : broken.message) EXPECT_THAT(std::string(status.message()), HasSubstr(part));
  EXPECT_EQ(status.message().find('\n'), absl::string_view::npos);

  Intact(broken.base).Write(dir.path(), broken.shards);
  EXPECT_TRUE(OpenAll(dir.path()).ok()) << OpenAll(dir.path());
}

INSTANTIATE_TEST_SUITE_P(Cases, BrokenCheckpointTest, ::testing::ValuesIn(Cases()),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(BrokenCheckpointTest, MissingFolder) { EXPECT_EQ(Checkpoint::Open("/nowhere/at/all").status().code(), kNotFound); }

// Sound checkpoints that this program does not run: they open, and say why layer by layer.
struct Unsupported {
  const char* name;
  Base base;
  std::function<void(TinyCheckpoint&)> change;
  const char* reason;
};
void PrintTo(const Unsupported& unsupported, std::ostream* out) { *out << unsupported.name; }

const std::vector<Unsupported>& UnsupportedCases() {
  static const auto* cases = new std::vector<Unsupported>{
      {"OtherMethod", Base::kFp8, Config("\"quant_method\":\"fp8\"", "\"quant_method\":\"gptq\""),
       "quantization_config.quant_method is \"gptq\", only fp8 (128 x 128 blocks) and mxfp4 are supported"},
      {"NoMethod", Base::kFp8, Config("\"quant_method\":\"fp8\",", ""), "quantization_config.quant_method is absent"},
      {"OtherBlocks", Base::kFp8, Config("[128,128]", "[1,128]"),
       "quantization_config.weight_block_size is [1,128], only [128, 128] is supported"},
      {"NoBlocks", Base::kFp8, Config(",\"weight_block_size\":[128,128]", ""), "weight_block_size is absent"},
      {"OtherFp8", Base::kFp8, Config("\"fmt\":\"e4m3\"", "\"fmt\":\"e5m2\""), "quantization_config.fmt is \"e5m2\""},
      {"Fp8WithoutConfig", Base::kBf16, With(Name("experts.0.gate_proj.weight"), {16, 32}, "F8_E4M3"),
       "f8_e4m3 weights, but config.json has no quantization_config"},
      {"RouterInFp8", Base::kFp8,
       [](TinyCheckpoint& files) {
         files.Add(Name("gate.weight"), {4, 32}, "F8_E4M3");
         files.Add(Name("gate.weight_scale_inv"), {1, 1}, "F32");
       },
       "model.safetensors: tensor model.layers.0.mlp.gate.weight: a router in fp8 is not supported"},
      {"UnknownActivation", Base::kBf16, Config("\"silu\"", "\"situ\""),
       "config.json: hidden_act: \"situ\" is unknown"},
      {"SharedExpertWithBiases", Base::kBf16, With(Name("shared_experts.gate_proj.bias"), {16}),
       "a shared expert with biases is not supported"},
      {"StackedFp8", Base::kLlama4,
       [](TinyCheckpoint& files) {
         files.config.insert(1, R"("quantization_config":{"quant_method":"fp8","weight_block_size":[128,128]},)");
         files.Add("model.layers.0.feed_forward.experts.gate_up_proj", {2, 32, 32}, "F8_E4M3");
         files.Add("model.layers.0.feed_forward.experts.down_proj", {2, 16, 32}, "F8_E4M3");
       },
       "fp8 experts stacked in one tensor are not supported"},
      {"SoftmaxInASigmoidFamily", Base::kBf16, Config("\"silu\"", "\"silu\",\"scoring_func\":\"softmax\""),
       "config.json: scoring_func: \"softmax\" is not the rule of deepseek_v3"},
  };
  return *cases;
}

class UnsupportedLayerTest : public ::testing::TestWithParam<Unsupported> {};

TEST_P(UnsupportedLayerTest, IsListedWithItsReason) {
  const TempDir dir;
  TinyCheckpoint files = Intact(GetParam().base);
  GetParam().change(files);
  files.Write(dir.path());
  auto checkpoint = Checkpoint::Open(dir.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
  EXPECT_TRUE((*checkpoint)->layers().empty());
  ASSERT_EQ((*checkpoint)->unsupported().size(), 1u);
  EXPECT_EQ((*checkpoint)->unsupported()[0].layer, 0);
  EXPECT_THAT((*checkpoint)->unsupported()[0].reason, HasSubstr(GetParam().reason));
  EXPECT_FALSE((*checkpoint)->OpenLayer(0).ok());
}

INSTANTIATE_TEST_SUITE_P(Cases, UnsupportedLayerTest, ::testing::ValuesIn(UnsupportedCases()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace expertd
