// What one MoE layer computes: sizes, routing rule, activation, shared expert, weight format. A plain value: families
// fill it from data (checkpoint/families.cc), every engine and the reference read it, and Validate() says what no
// engine could run.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace expertd {

// Routing = score -> choose -> weigh, all in f32; ties go to the lower expert id.
enum class Score : std::uint8_t { kSoftmax, kSigmoid, kRaw };

// Group-limited choice: experts stand in n_group equal groups, only the best topk_group groups may be chosen from.
enum class GroupScore : std::uint8_t {
  kNone,
  kMax,      // a group's score is its best (biased) score; masked experts get choice score 0 (deepseek_v2)
  kTop2Sum,  // the sum of its two best (biased) scores; masked experts get -inf (deepseek_v3)
};

enum class Weigh : std::uint8_t {
  kScore,            // the chosen experts' unbiased scores
  kSoftmaxOfChosen,  // softmax over the K chosen logits
  kSigmoidOfChosen,  // sigmoid of the chosen logits
  kSparseMixer,      // phimoe's two arg-maxes with jitter masks; K is 2
};

enum class Renormalise : std::uint8_t {
  kNone,
  kSumPlusEps,  // w / (sum + eps)
  kMaxSumEps,   // w / max(sum, eps)
};

struct RoutingRule {
  Score score = Score::kSoftmax;
  bool router_bias = false;      // added to the logits
  bool correction_bias = false;  // added to the scores for choosing only
  GroupScore group_score = GroupScore::kNone;
  std::int64_t n_group = 1;
  std::int64_t topk_group = 1;
  Weigh weigh = Weigh::kScore;
  Renormalise renormalise = Renormalise::kNone;
  float renormalise_eps = 0.0f;
  float scale = 1.0f;            // multiplies the weights last
  float jitter_eps = 0.0f;       // kSparseMixer: router_jitter_noise
  bool weight_on_input = false;  // llama4: the weight multiplies the expert's input instead of its output

  bool operator==(const RoutingRule&) const = default;
};

// The function of the gate; the expert computes act(gate(x)) * up(x), then down.
enum class Activation : std::uint8_t {
  kSilu,
  kGelu,      // exact, by erf
  kGeluTanh,  // gelu_pytorch_tanh
  kRelu,
  kRelu2,      // relu(gate)^2
  kSwigluOai,  // gpt_oss: gate = min(gate, limit), up = clamp(up, -limit, limit), (up + 1) * gate * sigmoid(alpha *
               // gate)
};

enum class WeightFormat : std::uint8_t { kBF16, kF16, kF32, kFp8Block128, kMxfp4 };

struct LayerSpec {
  std::string model;  // name it is served under
  std::int64_t layer = 0;
  std::string family;  // config.json's model_type

  std::int64_t hidden_size = 0;        // D
  std::int64_t num_experts = 0;        // E
  std::int64_t experts_per_token = 0;  // K
  std::int64_t intermediate_size = 0;  // F

  RoutingRule routing;
  Activation activation = Activation::kSilu;
  float swiglu_limit = 7.0f;    // kSwigluOai
  float swiglu_alpha = 1.702f;  // kSwigluOai

  WeightFormat expert_format = WeightFormat::kBF16;
  bool expert_bias = false;  // on gate, up and down

  std::int64_t shared_intermediate_size = 0;  // 0: no shared expert. The shared expert uses `activation` too
  bool shared_gated = false;                  // output times sigmoid(x . w_g)
  WeightFormat shared_format = WeightFormat::kBF16;

  // The experts this layer holds: ids [first_expert, first_expert + held_experts). Today checkpoints load all of them;
  // a slot that names another expert is skipped, so that shards can be added up by the caller.
  std::int64_t first_expert = 0;
  std::int64_t held_experts = 0;

  // InvalidArgument naming field, value and limit.
  absl::Status Validate() const;
  // "<model>/<layer>".
  std::string Name() const;
  // Every field that decides the function, in a fixed order and spelling, without model and layer: hashed into the
  // fingerprint.
  std::string Canonical() const;
  // One line of prose for people: "softmax, top-8 of 64, renormalised".
  std::string RoutingInWords() const;
};

absl::string_view ActivationName(Activation activation);  // "silu", "gelu", "gelu_tanh", "relu", "relu2", "swiglu_oai"
absl::string_view WeightFormatName(WeightFormat format);  // "bf16", "f16", "f32", "fp8", "mxfp4"

// What no layer may exceed; checked by Validate() before anything is allocated.
inline constexpr std::int64_t kMaxHiddenSize = 65536;
inline constexpr std::int64_t kMaxIntermediateSize = 262144;
inline constexpr std::int64_t kMaxExperts = 4096;
inline constexpr std::int64_t kMaxExpertsPerToken = 64;

}  // namespace expertd
