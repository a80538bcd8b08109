// The expert part of a layer and its router, forward and backward, in double: the ops of loops.h put together. The
// oracle of training, checked against central differences.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layer_spec.h"

namespace expertd::reference {

// logits [N, E] choose experts; each computes down . act(gate_up . x). Biases and shared experts are left out.
struct MoeProblem {
  std::int64_t n = 0, d = 0, e = 0, k = 0, f = 0;
  RoutingRule rule;  // without correction_bias; kSparseMixer has no gradient here
  Activation activation = Activation::kSilu;
  double limit = 7.0, alpha = 1.702;

  std::vector<double> rows;     // [N, D]
  std::vector<double> logits;   // [N, E]
  std::vector<double> gate_up;  // [E, 2F, D], gate rows first
  std::vector<double> down;     // [E, D, F]
};

// What MoeBackward needs again. Positions are slots sorted by expert.
struct MoeForwardResult {
  std::vector<double> out;                 // [N, D]
  std::vector<std::int32_t> topk_ids;      // [N, K]
  std::vector<double> topk_weights;        // [N, K]
  std::vector<std::int32_t> offsets;       // [E + 1]
  std::vector<std::int32_t> sorted_slots;  // [N * K]  slot of each position
  std::vector<std::int32_t> slot_pos;      // [N * K]  position of each slot
  std::vector<double> x;                   // [N * K, D]   the experts' inputs
  std::vector<double> gate_up;             // [N * K, 2F]  before the activation
  std::vector<double> hidden;              // [N * K, F]   after it
  std::vector<double> expert_out;          // [N * K, D]   unweighted
};

struct MoeGradients {
  std::vector<double> rows;          // [N, D], through the experts only: logits are an input of their own
  std::vector<double> topk_weights;  // [N, K]
  std::vector<double> logits;        // [N, E]
  std::vector<double> gate_up;       // [E, 2F, D]
  std::vector<double> down;          // [E, D, F]
};

// The experts alone, for routing that is given: of the problem's rule only weight_on_input counts, and logits are not
// used. Ids of -1 are skipped. InvalidArgument: sizes and vectors do not fit.
absl::StatusOr<MoeForwardResult> ExpertsForward(const MoeProblem& problem, std::vector<std::int32_t> topk_ids,
                                                std::vector<double> topk_weights);
// Every gradient but that of the logits.
absl::StatusOr<MoeGradients> ExpertsBackward(const MoeProblem& problem, const MoeForwardResult& forward,
                                             const std::vector<double>& grad_out);

// InvalidArgument: sizes and vectors do not fit, or a rule as excluded above.
absl::StatusOr<MoeForwardResult> MoeForward(const MoeProblem& problem);
// Gradients of sum(grad_out * out), grad_out [N, D]; `forward` is MoeForward's answer to `problem`.
absl::StatusOr<MoeGradients> MoeBackward(const MoeProblem& problem, const MoeForwardResult& forward,
                                         const std::vector<double>& grad_out);

}  // namespace expertd::reference
