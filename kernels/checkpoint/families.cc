#include "kernels/checkpoint/families.h"

#include <algorithm>

#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"

namespace expertd {
namespace {

constexpr TensorNames kMlp = {
    .router = "mlp.gate.weight",
    .correction_bias = {"mlp.gate.e_score_correction_bias"},
    .experts = "mlp.experts.",
    .gate = "gate_proj.weight",
    .up = "up_proj.weight",
    .down = "down_proj.weight",
    .shared = {"mlp.shared_experts."},
};
constexpr TensorNames kQwen = [] {
  TensorNames names = kMlp;
  names.shared = {"mlp.shared_expert."};
  names.shared_gate = "mlp.shared_expert_gate.weight";
  return names;
}();
// The same with all experts in one tensor, as some are published.
constexpr TensorNames Stacked(TensorNames names) {
  names.layout = ExpertLayout::kStackedRows;
  names.gate = "gate_up_proj";
  names.up = "";
  names.down = "down_proj";
  return names;
}
constexpr TensorNames kMlpStacked = Stacked(kMlp);
constexpr TensorNames kQwenStacked = Stacked(kQwen);
constexpr TensorNames kExaone = [] {
  TensorNames names = kMlp;
  names.correction_bias = {"mlp.e_score_correction_bias", "mlp.gate.e_score_correction_bias"};
  return names;
}();
constexpr TensorNames kErnie = [] {
  TensorNames names = kMlp;
  names.correction_bias = {"mlp.moe_statics.e_score_correction_bias"};
  return names;
}();
constexpr TensorNames kHunyuan = [] {
  TensorNames names = kMlp;
  names.router = "mlp.gate.wg.weight";
  names.shared = {"mlp.shared_mlp."};
  return names;
}();
constexpr TensorNames kAfmoe = [] {
  TensorNames names = kMlp;
  names.router = "mlp.router.gate.weight";
  names.correction_bias = {"mlp.expert_bias"};
  return names;
}();
constexpr TensorNames kBlockSparse = {
    .router = "block_sparse_moe.gate.weight",
    .correction_bias = {"block_sparse_moe.e_score_correction_bias", "block_sparse_moe.gate.e_score_correction_bias"},
    .experts = "block_sparse_moe.experts.",
    .gate = "w1.weight",
    .up = "w3.weight",
    .down = "w2.weight",
    .shared = {"block_sparse_moe.shared_experts."},
};
constexpr TensorNames kGranite = {
    .router = "block_sparse_moe.router.layer.weight",
    .layout = ExpertLayout::kStackedRows,
    .experts = "block_sparse_moe.",
    .gate = "input_linear.weight",
    .down = "output_linear.weight",
};
constexpr TensorNames kGptOss = {
    .router = "mlp.router.weight",
    .router_bias = "mlp.router.bias",
    .layout = ExpertLayout::kStackedColumns,
    .interleaved = true,
    .experts = "mlp.experts.",
    .gate = "gate_up_proj",
    .down = "down_proj",
};
constexpr TensorNames kLlama4 = {
    .router = "feed_forward.router.weight",
    .layout = ExpertLayout::kStackedColumns,
    .experts = "feed_forward.experts.",
    .gate = "gate_up_proj",
    .down = "down_proj",
    .shared = {"feed_forward.shared_expert."},
};
constexpr TensorNames kJamba = {
    .router = "feed_forward.router.weight",
    .experts = "feed_forward.experts.",
    .gate = "gate_proj.weight",
    .up = "up_proj.weight",
    .down = "down_proj.weight",
};

// Rows that several families share but for a few fields; `As` gives a copy another name.
constexpr Family As(Family family, absl::string_view model_type) {
  family.model_type = model_type;
  return family;
}

constexpr Family kMixtral = {
    .model_type = "mixtral",
    .names = {&kBlockSparse},
    .experts = "num_local_experts",
    .ffn = "intermediate_size",
    .renormalise = Renormalise::kSumPlusEps,
};

constexpr Family kQwen3Next = {
    .model_type = "qwen3_next",
    .names = {&kQwen, &kQwenStacked},
    .experts = {"num_experts", "num_local_experts"},
    .renormalise = Renormalise::kSumPlusEps,
    .renormalise_if = "norm_topk_prob",
    .renormalise_default = true,
    .shared_size = "shared_expert_intermediate_size",
    .shared_gated = true,
};
constexpr Family kQwen35 = [] {
  Family family = kQwen3Next;
  family.model_type = "qwen3_5_moe";
  family.renormalise_if = {};
  return family;
}();

constexpr Family kOlmoe = {
    .model_type = "olmoe",
    .names = {&kMlp, &kMlpStacked},
    .experts = {"num_experts", "num_local_experts"},
    .ffn = "intermediate_size",
    .renormalise = Renormalise::kSumPlusEps,
    .renormalise_if = "norm_topk_prob",
};

constexpr Family kDeepseekV3 = {
    .model_type = "deepseek_v3",
    .names = {&kMlp, &kMlpStacked},
    .experts = {"n_routed_experts", "num_experts", "num_local_experts"},
    .score = Score::kSigmoid,
    .correction_bias = true,
    .groups = GroupScore::kTop2Sum,
    .n_group_default = 8,
    .topk_group_default = 4,
    .renormalise = Renormalise::kSumPlusEps,
    .renormalise_if = "norm_topk_prob",
    .renormalise_default = true,
    .eps = 1e-20,
    .scale = "routed_scaling_factor",
    .scale_default = 2.5,
    .shared_count = {"n_shared_experts", "num_shared_experts"},
    .shared_count_default = 1,
};
// glm4_moe and what follows it: one group and no scale unless the file says otherwise.
constexpr Family kGlm4Moe = [] {
  Family family = kDeepseekV3;
  family.model_type = "glm4_moe";
  family.n_group_default = family.topk_group_default = 1;
  family.scale_default = 1.0;
  return family;
}();
constexpr Family kDots1 = [] {
  Family family = kGlm4Moe;
  family.model_type = "dots1";
  family.renormalise_default = false;
  family.shared_count_default = 0;
  return family;
}();
constexpr Family kExaoneMoe = [] {
  Family family = kGlm4Moe;
  family.model_type = "exaone_moe";
  family.names = {&kExaone};
  family.scale_default = 2.5;
  return family;
}();
constexpr Family kKimiLinear = [] {
  Family family = kGlm4Moe;
  family.model_type = "kimi_linear";
  family.names = {&kBlockSparse};
  family.experts = {"num_experts", "num_local_experts", "n_routed_experts"};
  family.topk = {"num_experts_per_token", "num_experts_per_tok"};
  family.n_group = {"num_expert_group", "n_group"};
  family.renormalise_if = {"moe_renormalize", "norm_topk_prob"};
  family.scale_default = 2.446;
  return family;
}();

constexpr Family kLlama4Text = {
    .model_type = "llama4_text",
    .names = {&kLlama4},
    .experts = "num_local_experts",
    .ffn = "intermediate_size",
    .score = Score::kRaw,
    .weigh = Weigh::kSigmoidOfChosen,
    .weight_on_input = true,
    .shared_is_ffn = true,
};

constexpr Family kFamilies[] = {
    kMixtral,
    As(kMixtral, "minimax"),
    {.model_type = "qwen2_moe",
     .names = {&kQwen, &kQwenStacked},
     .experts = {"num_experts", "num_local_experts"},
     .renormalise = Renormalise::kSumPlusEps,
     .renormalise_if = "norm_topk_prob",
     .shared_size = "shared_expert_intermediate_size",
     .shared_gated = true},
    {.model_type = "qwen3_moe",
     .names = {&kQwen, &kQwenStacked},
     .experts = {"num_experts", "num_local_experts"},
     .renormalise = Renormalise::kSumPlusEps,
     .renormalise_if = "norm_topk_prob"},
    kQwen3Next,
    kQwen35,
    As(kQwen35, "qwen3_5_moe_text"),
    kOlmoe,
    As(kOlmoe, "flex_olmo"),
    {.model_type = "jamba",
     .names = {&kJamba},
     .experts = {"num_experts", "num_local_experts"},
     .ffn = "intermediate_size"},
    {.model_type = "deepseek_v2",
     .names = {&kMlp, &kMlpStacked},
     .experts = {"n_routed_experts", "num_experts", "num_local_experts"},
     .groups = GroupScore::kMax,
     .groups_if_method = "group_limited_greedy",
     .scale = "routed_scaling_factor",
     .shared_count = "n_shared_experts",
     .shared_count_default = 2},
    kDeepseekV3,
    As(kDeepseekV3, "kimi_k2"),
    kGlm4Moe,
    As(kGlm4Moe, "solar_open"),
    kDots1,
    kExaoneMoe,
    kKimiLinear,
    {.model_type = "afmoe",
     .names = {&kAfmoe},
     .experts = {"num_experts", "num_local_experts"},
     .score = Score::kSigmoid,
     .correction_bias = true,
     .renormalise = Renormalise::kSumPlusEps,
     .eps = 1e-20,
     .scale = "route_scale",
     .shared_count = "num_shared_experts",
     .shared_count_default = 2},
    {.model_type = "minimax_m2",
     .names = {&kBlockSparse},
     .experts = "num_local_experts",
     .ffn = "intermediate_size",
     .score = Score::kSigmoid,
     .correction_bias = true,
     .renormalise = Renormalise::kSumPlusEps},
    {.model_type = "gpt_oss",
     .names = {&kGptOss},
     .experts = "num_local_experts",
     .ffn = "intermediate_size",
     .score = Score::kRaw,
     .router_bias = true,
     .weigh = Weigh::kSoftmaxOfChosen,
     .swiglu_oai = true,
     .expert_bias = true},
    {.model_type = "granitemoe",
     .names = {&kGranite},
     .experts = "num_local_experts",
     .ffn = "intermediate_size",
     .score = Score::kRaw,
     .weigh = Weigh::kSoftmaxOfChosen},
    kLlama4Text,
    As(kLlama4Text, "llama4"),
    {.model_type = "phimoe",
     .names = {&kBlockSparse},
     .experts = "num_local_experts",
     .ffn = "intermediate_size",
     .score = Score::kRaw,
     .weigh = Weigh::kSparseMixer,
     .jitter = "router_jitter_noise",
     .jitter_default = 0.01},
    {.model_type = "hunyuan_v1_moe",
     .names = {&kHunyuan},
     .experts = "num_experts",
     .topk = "moe_topk",
     .ffn = "intermediate_size",
     .renormalise = Renormalise::kSumPlusEps,
     .shared_is_ffn = true},
    {.model_type = "ernie4_5_moe",
     .names = {&kErnie},
     .experts = "moe_num_experts",
     .topk = "moe_k",
     .correction_bias = true,
     .renormalise = Renormalise::kMaxSumEps,
     .eps_key = "moe_norm_min",
     .eps = 1e-12,
     .shared_count = "moe_num_shared_experts",
     .shared_count_default = 2},
};

struct NamedActivation {
  absl::string_view name;
  Activation activation;
};
constexpr NamedActivation kActivations[] = {
    {"silu", Activation::kSilu},         {"swish", Activation::kSilu},
    {"gelu", Activation::kGelu},         {"gelu_pytorch_tanh", Activation::kGeluTanh},
    {"gelu_new", Activation::kGeluTanh}, {"relu", Activation::kRelu},
    {"relu2", Activation::kRelu2},
};

// Reads into *out what `value` holds, or returns its error.
template <class T, class Out>
absl::Status Take(const absl::StatusOr<T>& value, Out* out) {
  if (!value.ok()) return value.status();
  *out = static_cast<Out>(*value);
  return absl::OkStatus();
}

absl::Status FirstError(std::initializer_list<absl::Status> statuses) {
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status ReadGroups(const Family& family, const ModelConfig& config, RoutingRule* rule) {
  if (family.groups == GroupScore::kNone) return absl::OkStatus();
  if (!family.groups_if_method.empty()) {
    const auto method = config.String("topk_method", 0, "greedy");
    if (!method.ok()) return method.status();
    if (*method == "greedy") return absl::OkStatus();
    if (*method != family.groups_if_method) {
      return absl::UnimplementedError(absl::StrFormat("config.json: topk_method: \"%s\" is neither greedy nor %s",
                                                      absl::Utf8SafeCEscape(*method), family.groups_if_method));
    }
  }
  absl::Status status = FirstError({
      Take(config.Integer(family.n_group, 0, family.n_group_default), &rule->n_group),
      Take(config.Integer(family.topk_group, 0, family.topk_group_default), &rule->topk_group),
  });
  // One group of which one is chosen limits nothing.
  if (rule->n_group != 1 || rule->topk_group != 1) rule->group_score = family.groups;
  return status;
}

absl::Status ReadRouting(const Family& family, const ModelConfig& config, std::int64_t layer, RoutingRule* rule) {
  rule->score = family.score;
  rule->router_bias = family.router_bias;
  rule->correction_bias = family.correction_bias;
  rule->weigh = family.weigh;
  rule->weight_on_input = family.weight_on_input;
  bool renormalise = true;
  double eps = family.eps;
  if (absl::Status status = FirstError({
          ReadGroups(family, config, rule),
          Take(config.Bool(family.renormalise_if, layer,
                           family.renormalise_if.empty() ? true : family.renormalise_default),
               &renormalise),
          Take(config.Number(family.eps_key, layer, family.eps), &eps),
          Take(config.Number(family.scale, layer, family.scale_default), &rule->scale),
          Take(config.Number(family.jitter, layer, family.jitter_default), &rule->jitter_eps),
      });
      !status.ok()) {
    return status;
  }
  if (family.renormalise != Renormalise::kNone && renormalise) {
    rule->renormalise = family.renormalise;
    rule->renormalise_eps = static_cast<float>(eps);
  }
  // transformers ignores this key; a file in which it contradicts its family's rule is not what it claims to be.
  const auto scoring = config.String("scoring_func", 0, "");
  if (!scoring.ok()) return scoring.status();
  if ((*scoring == "softmax" && rule->score == Score::kSigmoid) ||
      (*scoring == "sigmoid" && rule->score == Score::kSoftmax)) {
    return absl::UnimplementedError(
        absl::StrFormat("config.json: scoring_func: \"%s\" is not the rule of %s", *scoring, family.model_type));
  }
  return absl::OkStatus();
}

absl::Status ReadActivation(const Family& family, const ModelConfig& config, LayerSpec* spec) {
  if (family.swiglu_oai) {
    spec->activation = Activation::kSwigluOai;
    return Take(config.Number("swiglu_limit", 0, 7.0), &spec->swiglu_limit);
  }
  const auto name = config.String({"hidden_act", "hidden_activation"}, 0, "silu");
  if (!name.ok()) return name.status();
  for (const NamedActivation& known : kActivations) {
    if (known.name != *name) continue;
    spec->activation = known.activation;
    return absl::OkStatus();
  }
  return absl::UnimplementedError(
      absl::StrFormat("config.json: hidden_act: \"%s\" is unknown", absl::Utf8SafeCEscape(*name)));
}

absl::Status ReadShared(const Family& family, const ModelConfig& config, std::int64_t layer, LayerSpec* spec) {
  std::int64_t count = 0;
  if (absl::Status status = FirstError({
          Take(config.Integer(family.shared_size, layer, 0), &spec->shared_intermediate_size),
          Take(config.Integer(family.shared_count, layer, family.shared_count_default), &count),
      });
      !status.ok()) {
    return status;
  }
  if (count < 0 || count > kMaxExperts) {
    return absl::InvalidArgumentError(
        absl::StrFormat("config.json: %s: %d is outside 0..%d", family.shared_count.names[0], count, kMaxExperts));
  }
  if (!family.shared_count.empty()) spec->shared_intermediate_size = count * spec->intermediate_size;
  if (family.shared_is_ffn) spec->shared_intermediate_size = spec->intermediate_size;
  spec->shared_gated = family.shared_gated && spec->shared_intermediate_size > 0;
  return absl::OkStatus();
}

}  // namespace

absl::Span<const Family> KnownFamilies() { return kFamilies; }

const Family* FindFamily(absl::string_view model_type) {
  const auto found = std::find_if(std::begin(kFamilies), std::end(kFamilies),
                                  [&](const Family& family) { return family.model_type == model_type; });
  return found == std::end(kFamilies) ? nullptr : found;
}

absl::StatusOr<const Family*> ChooseFamily(const ModelConfig& config, const std::string& override) {
  for (const std::string& name : {override, config.outer_type(), config.inner_type()}) {
    if (const Family* family = FindFamily(name)) return family;
    if (!override.empty()) break;
  }
  const std::string& name = !override.empty() ? override : config.outer_type();
  const std::string known =
      absl::StrJoin(kFamilies, ", ", [](std::string* out, const Family& f) { absl::StrAppend(out, f.model_type); });
  if (name.empty()) return absl::InvalidArgumentError(absl::StrCat("config.json: model_type: missing; known: ", known));
  return absl::InvalidArgumentError(absl::StrFormat("%s \"%s\" is unknown; known: %s",
                                                    override.empty() ? "config.json: model_type:" : "family",
                                                    absl::Utf8SafeCEscape(name), known));
}

absl::StatusOr<LayerSpec> ReadSpec(const Family& family, const ModelConfig& config, std::int64_t layer) {
  LayerSpec spec;
  spec.layer = layer;
  spec.family = std::string(family.model_type);
  if (absl::Status status = FirstError({
          Take(config.Integer("hidden_size", layer, {}), &spec.hidden_size),
          Take(config.Integer(family.experts, layer, {}), &spec.num_experts),
          Take(config.Integer(family.topk, layer, {}), &spec.experts_per_token),
          Take(config.Integer(family.ffn, layer, {}), &spec.intermediate_size),
      });
      !status.ok()) {
    return status;
  }
  spec.held_experts = spec.num_experts;
  const auto in_config = [](const absl::Status& status) {
    return status.ok() ? status : absl::Status(status.code(), absl::StrCat("config.json: ", status.message()));
  };
  // Sizes first: what follows multiplies them.
  if (absl::Status status = in_config(spec.Validate()); !status.ok()) return status;
  if (absl::Status status = FirstError({
          ReadRouting(family, config, layer, &spec.routing),
          ReadActivation(family, config, &spec),
          ReadShared(family, config, layer, &spec),
      });
      !status.ok()) {
    return status;
  }
  if (absl::Status status = in_config(spec.Validate()); !status.ok()) return status;
  return spec;
}

}  // namespace expertd
