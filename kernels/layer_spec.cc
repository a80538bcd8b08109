#include "kernels/layer_spec.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/string_view.h"

namespace expertd {
namespace {

absl::string_view ScoreName(Score score) {
  switch (score) {
    case Score::kSoftmax:
      return "softmax";
    case Score::kSigmoid:
      return "sigmoid";
    case Score::kRaw:
      return "raw logits";
  }
  return "?";
}

absl::string_view WeighName(Weigh weigh) {
  switch (weigh) {
    case Weigh::kScore:
      return "score";
    case Weigh::kSoftmaxOfChosen:
      return "softmax of the chosen";
    case Weigh::kSigmoidOfChosen:
      return "sigmoid of the chosen";
    case Weigh::kSparseMixer:
      return "sparse mixer";
  }
  return "?";
}

absl::Status CheckRange(absl::string_view field, std::int64_t value, std::int64_t low, std::int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: %d is outside %d..%d", field, value, low, high));
}

absl::Status ValidateGroups(const LayerSpec& spec) {
  const RoutingRule& rule = spec.routing;
  if (rule.group_score == GroupScore::kNone) return absl::OkStatus();
  if (auto status = CheckRange("n_group", rule.n_group, 1, spec.num_experts); !status.ok()) return status;
  if (auto status = CheckRange("topk_group", rule.topk_group, 1, rule.n_group); !status.ok()) return status;
  if (spec.num_experts % rule.n_group != 0) {
    return absl::InvalidArgumentError(
        absl::StrFormat("n_group: %d does not divide %d experts", rule.n_group, spec.num_experts));
  }
  const std::int64_t group_size = spec.num_experts / rule.n_group;
  if (rule.group_score == GroupScore::kTop2Sum && group_size < 2) {
    return absl::InvalidArgumentError(
        absl::StrFormat("n_group: %d leaves groups of one expert, their score needs two", rule.n_group));
  }
  return CheckRange("experts_per_token", spec.experts_per_token, 1, rule.topk_group * group_size);
}

}  // namespace

absl::Status LayerSpec::Validate() const {
  for (const absl::Status& status : {
           CheckRange("hidden_size", hidden_size, 1, kMaxHiddenSize),
           CheckRange("num_experts", num_experts, 1, kMaxExperts),
           CheckRange("experts_per_token", experts_per_token, 1, kMaxExpertsPerToken),
           CheckRange("experts_per_token", experts_per_token, 1, num_experts),
           CheckRange("intermediate_size", intermediate_size, 1, kMaxIntermediateSize),
           CheckRange("shared_intermediate_size", shared_intermediate_size, 0, kMaxIntermediateSize),
           CheckRange("first_expert", first_expert, 0, num_experts),
           CheckRange("held_experts", held_experts, 0, num_experts - first_expert),
           ValidateGroups(*this),
       }) {
    if (!status.ok()) return status;
  }
  if (routing.weigh == Weigh::kSparseMixer && experts_per_token != 2) {
    return absl::InvalidArgumentError(
        absl::StrFormat("experts_per_token: %d, but the sparse mixer chooses 2", experts_per_token));
  }
  return absl::OkStatus();
}

std::string LayerSpec::Name() const { return absl::StrCat(model, "/", layer); }

std::string LayerSpec::Canonical() const {
  const RoutingRule& r = routing;
  return absl::StrFormat(
      "v1 D=%d E=%d K=%d F=%d score=%d router_bias=%d correction_bias=%d group=%d/%d/%d weigh=%d renorm=%d/%a scale=%a "
      "jitter=%a weight_on_input=%d act=%s/%a/%a format=%s bias=%d shared=%d/%d/%s held=%d+%d",
      hidden_size, num_experts, experts_per_token, intermediate_size, static_cast<int>(r.score), r.router_bias,
      r.correction_bias, static_cast<int>(r.group_score), r.n_group, r.topk_group, static_cast<int>(r.weigh),
      static_cast<int>(r.renormalise), r.renormalise_eps, r.scale, r.jitter_eps, r.weight_on_input,
      ActivationName(activation), swiglu_limit, swiglu_alpha, WeightFormatName(expert_format), expert_bias,
      shared_intermediate_size, shared_gated, WeightFormatName(shared_format), first_expert, held_experts);
}

std::string LayerSpec::RoutingInWords() const {
  const RoutingRule& r = routing;
  std::string words = absl::StrCat(ScoreName(r.score), ", top-", experts_per_token, " of ", num_experts);
  if (r.group_score != GroupScore::kNone && r.n_group > 1) {
    absl::StrAppend(&words, " from ", r.topk_group, " of ", r.n_group, " groups");
  }
  if (r.correction_bias) absl::StrAppend(&words, ", bias for choosing");
  if (r.weigh != Weigh::kScore) absl::StrAppend(&words, ", ", WeighName(r.weigh));
  if (r.renormalise != Renormalise::kNone) absl::StrAppend(&words, ", renormalised");
  if (r.scale != 1.0f) absl::StrAppend(&words, ", times ", r.scale);
  if (r.weight_on_input) absl::StrAppend(&words, ", weight on the input");
  return words;
}

absl::string_view ActivationName(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return "silu";
    case Activation::kGelu:
      return "gelu";
    case Activation::kGeluTanh:
      return "gelu_tanh";
    case Activation::kRelu:
      return "relu";
    case Activation::kRelu2:
      return "relu2";
    case Activation::kSwigluOai:
      return "swiglu_oai";
  }
  return "?";
}

absl::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBF16:
      return "bf16";
    case WeightFormat::kF16:
      return "f16";
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kFp8Block128:
      return "fp8";
    case WeightFormat::kMxfp4:
      return "mxfp4";
  }
  return "?";
}

}  // namespace expertd
