// What is known of each model family, as data: how config.json spells its sizes and routing rule, and how its tensors
// are named and laid out. A new family is a row of families.cc. Private to kernels/checkpoint.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/checkpoint/config.h"
#include "kernels/layer_spec.h"

namespace expertd {

enum class ExpertLayout : std::uint8_t {
  kSeparate,        // for each expert gate [F, D], up [F, D], down [D, F]
  kStackedRows,     // gate_up [E, 2F, D], down [E, D, F]
  kStackedColumns,  // gate_up [E, D, 2F], down [E, F, D]
};

// Names below "layers.<i>.". Several names of one thing are alternatives.
struct TensorNames {
  absl::string_view router;                          // [E, D]
  absl::string_view router_bias;                     // [E]
  std::array<absl::string_view, 3> correction_bias;  // [E] or [1, E]
  ExpertLayout layout = ExpertLayout::kSeparate;
  bool interleaved = false;                 // stacked: gate and up alternate instead of gate, then up
  absl::string_view experts;                // prefix of all expert tensors
  absl::string_view gate, up, down;         // kSeparate: after "<experts><e>."; stacked: gate is gate_up
  std::array<absl::string_view, 3> shared;  // prefixes of {gate,up,down}_proj.weight
  absl::string_view shared_gate;            // [1, D]
};

struct Family {
  absl::string_view model_type;
  std::array<const TensorNames*, 2> names = {};  // tried in this order; null: none

  Keys experts;                        // E
  Keys topk = "num_experts_per_tok";   // K
  Keys ffn = "moe_intermediate_size";  // F

  Score score = Score::kSoftmax;
  bool router_bias = false;
  bool correction_bias = false;
  GroupScore groups = GroupScore::kNone;
  absl::string_view groups_if_method;  // groups apply when topk_method says this; other methods than greedy are refused
  Keys n_group = "n_group";
  Keys topk_group = "topk_group";
  std::int64_t n_group_default = 1;
  std::int64_t topk_group_default = 1;
  Weigh weigh = Weigh::kScore;
  Renormalise renormalise = Renormalise::kNone;
  Keys renormalise_if;               // empty: always
  bool renormalise_default = false;  // where the key is absent
  Keys eps_key;
  double eps = 0.0;
  Keys scale;
  double scale_default = 1.0;
  Keys jitter;
  double jitter_default = 0.0;
  bool weight_on_input = false;

  bool swiglu_oai = false;   // otherwise by hidden_act
  bool expert_bias = false;  // always there; other families have biases where their tensors are

  // The shared expert's size: this key's value, or count x F, or F itself; none of them: there is no shared expert.
  Keys shared_size;
  Keys shared_count;
  std::int64_t shared_count_default = 0;
  bool shared_is_ffn = false;
  bool shared_gated = false;
};

absl::Span<const Family> KnownFamilies();
// Null when unknown.
const Family* FindFamily(absl::string_view model_type);
// `override` where it is not empty, else what config.json says. InvalidArgument with the known names.
absl::StatusOr<const Family*> ChooseFamily(const ModelConfig& config, const std::string& override);

// Everything of layer `layer` that config.json decides; weight formats and biases are the tensors' to say, model stays
// empty. InvalidArgument: a value that no model could have; Unimplemented: one that this program cannot run.
absl::StatusOr<LayerSpec> ReadSpec(const Family& family, const ModelConfig& config, std::int64_t layer);

}  // namespace expertd
