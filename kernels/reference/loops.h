// The floating-point operations of kernels/ops.h as unchecked loops over any element type. ops.h's functions of the
// same names check and call these; RunLayer and MoeBackward call them in double throughout. Arguments as in
// kernels/ops.h.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/layer_spec.h"
#include "kernels/reference/elements.h"

namespace expertd::reference {

// act(gate) * up, and its partial derivatives.
struct GatedActivation {
  Activation function = Activation::kSilu;
  double limit = 7.0, alpha = 1.702;  // kSwigluOai

  struct Partials {
    double gate, up;
  };
  double operator()(double gate, double up) const;
  // One-sided at the kinks of relu, relu2 and the clamps: zero outside, the inner slope on the border of a clamp.
  Partials Derivative(double gate, double up) const;
};

double Sigmoid(double x);

void ActivationForward(const GatedActivation& activation, std::int64_t m, std::int64_t f, bool interleaved, In in,
                       Out out);
void ActivationBackward(const GatedActivation& activation, std::int64_t m, std::int64_t f, bool interleaved,
                        In grad_out, In in, Out grad_in);

// One row's choice of experts.
struct Routing {
  std::vector<std::int32_t> ids;  // [K], best first
  std::vector<double> weights;    // [K]
  double margin = 0;              // LayerResult::choice_margin
};
// logits [E], router bias added; correction_bias [E] or empty.
Routing Route(const RoutingRule& rule, std::int64_t k, const std::vector<double>& logits,
              const std::vector<double>& correction_bias);
// d(sum_k grad_weights[k] * weights[k]) / d logits, for the experts that `routing` chose; the choice itself has no
// gradient. Not for kSparseMixer.
std::vector<double> RouteGrad(const RoutingRule& rule, const std::vector<double>& logits, const Routing& routing,
                              const std::vector<double>& grad_weights);

void GatherReduce(std::int64_t n, std::int64_t d, std::int64_t k, In expert_out, const std::int32_t* slot_row,
                  In weights, Out out);
void WeightedScatter(std::int64_t n, std::int64_t d, std::int64_t k, std::int64_t r, In grad_out,
                     const std::int32_t* slot_row, In weights, Out grad_expert);
void RoutingWeightGrad(std::int64_t n, std::int64_t d, std::int64_t k, In expert_out, In grad_out,
                       const std::int32_t* slot_row, Out grad_weights);

void GroupedGemm(std::int64_t e, std::int64_t in, std::int64_t out_features, In x, const std::int32_t* gather,
                 const std::int32_t* offsets, In w, Out out);
void WeightGrad(std::int64_t e, std::int64_t in, std::int64_t out_features, In grad_out, In x,
                const std::int32_t* offsets, Out grad_w);

}  // namespace expertd::reference
