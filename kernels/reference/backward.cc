#include "kernels/reference/backward.h"

#include <initializer_list>
#include <tuple>
#include <utility>

#include "absl/strings/str_format.h"
#include "kernels/ops.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {
namespace {

using Sizes = std::tuple<absl::string_view, std::size_t, std::int64_t>;  // field, elements, what it should have
absl::Status CheckSizes(std::initializer_list<Sizes> sizes) {
  for (const auto& [field, size, want] : sizes) {
    if (static_cast<std::int64_t>(size) != want) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: %d elements, the sizes give %d", field, size, want));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckProblem(const MoeProblem& p) {
  LayerSpec spec;
  spec.hidden_size = p.d;
  spec.intermediate_size = p.f;
  spec.num_experts = p.e;
  spec.experts_per_token = p.k;
  spec.routing = p.rule;
  if (absl::Status status = spec.Validate(); !status.ok()) return status;
  return CheckSizes({{"rows", p.rows.size(), p.n * p.d},
                     {"gate_up", p.gate_up.size(), p.e * 2 * p.f * p.d},
                     {"down", p.down.size(), p.e * p.d * p.f}});
}

absl::Status CheckRouter(const MoeProblem& p) {
  if (p.rule.correction_bias || p.rule.weigh == Weigh::kSparseMixer) {
    return absl::InvalidArgumentError("rule: correction_bias and the sparse mixer have no gradient here");
  }
  return CheckSizes({{"logits", p.logits.size(), p.n * p.e}});
}

GatedActivation ActivationOf(const MoeProblem& p) { return {p.activation, p.limit, p.alpha}; }

std::vector<double> RowOf(const std::vector<double>& matrix, std::int64_t width, std::int64_t row) {
  return {matrix.begin() + row * width, matrix.begin() + (row + 1) * width};
}

std::vector<double> Zeros(std::int64_t size) { return std::vector<double>(static_cast<std::size_t>(size)); }

// [E, rows, cols] -> [E, cols, rows].
std::vector<double> Transpose(const std::vector<double>& w, std::int64_t e, std::int64_t rows, std::int64_t cols) {
  std::vector<double> t(w.size());
  for (std::int64_t x = 0; x < e; ++x) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t c = 0; c < cols; ++c) t[(x * cols + c) * rows + r] = w[(x * rows + r) * cols + c];
    }
  }
  return t;
}

absl::Status SortSlots(const MoeProblem& p, MoeForwardResult& f) {
  const std::int64_t slots = p.n * p.k;
  std::vector<std::int32_t> counts(p.e), block_experts(slots);
  f.offsets.resize(p.e + 1);
  f.sorted_slots.resize(slots);
  f.slot_pos.assign(slots, -1);
  const absl::Status status = MoeAlignBlockSize({.slots = slots,
                                                 .e = p.e,
                                                 .block = 1,
                                                 .ids = f.topk_ids.data(),
                                                 .counts = counts.data(),
                                                 .offsets = f.offsets.data(),
                                                 .sorted_slots = f.sorted_slots.data(),
                                                 .block_experts = block_experts.data()});
  if (!status.ok()) return status;
  for (std::int64_t pos = 0; pos < f.offsets[p.e]; ++pos) f.slot_pos[f.sorted_slots[pos]] = static_cast<int>(pos);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<MoeForwardResult> MoeForward(const MoeProblem& p) {
  if (absl::Status status = CheckProblem(p); !status.ok()) return status;
  if (absl::Status status = CheckRouter(p); !status.ok()) return status;
  std::vector<std::int32_t> ids;
  std::vector<double> weights;
  for (std::int64_t i = 0; i < p.n; ++i) {
    const Routing routing = Route(p.rule, p.k, RowOf(p.logits, p.e, i), {});
    ids.insert(ids.end(), routing.ids.begin(), routing.ids.end());
    weights.insert(weights.end(), routing.weights.begin(), routing.weights.end());
  }
  return ExpertsForward(p, std::move(ids), std::move(weights));
}

absl::StatusOr<MoeForwardResult> ExpertsForward(const MoeProblem& p, std::vector<std::int32_t> topk_ids,
                                                std::vector<double> topk_weights) {
  const std::int64_t slots = p.n * p.k;
  absl::Status status = CheckProblem(p);
  if (status.ok()) status = CheckSizes({{"ids", topk_ids.size(), slots}, {"weights", topk_weights.size(), slots}});
  if (!status.ok()) return status;
  MoeForwardResult r;
  r.topk_ids = std::move(topk_ids);
  r.topk_weights = std::move(topk_weights);
  if (status = SortSlots(p, r); !status.ok()) return status;
  r.x = Zeros(slots * p.d);
  for (std::int64_t pos = 0; pos < r.offsets[p.e]; ++pos) {
    const std::int64_t s = r.sorted_slots[pos];
    const double factor = p.rule.weight_on_input ? r.topk_weights[s] : 1.0;
    for (std::int64_t j = 0; j < p.d; ++j) r.x[pos * p.d + j] = factor * p.rows[s / p.k * p.d + j];
  }
  r.gate_up = Zeros(slots * 2 * p.f);
  r.hidden = Zeros(slots * p.f);
  r.expert_out = Zeros(slots * p.d);
  r.out = Zeros(p.n * p.d);
  GroupedGemm(p.e, p.d, 2 * p.f, r.x, nullptr, r.offsets.data(), p.gate_up, r.gate_up);
  ActivationForward(ActivationOf(p), slots, p.f, false, r.gate_up, r.hidden);
  GroupedGemm(p.e, p.f, p.d, r.hidden, nullptr, r.offsets.data(), p.down, r.expert_out);
  const In weights = p.rule.weight_on_input ? In(static_cast<const double*>(nullptr)) : In(r.topk_weights);
  GatherReduce(p.n, p.d, p.k, r.expert_out, r.slot_pos.data(), weights, r.out);
  return r;
}

absl::StatusOr<MoeGradients> MoeBackward(const MoeProblem& p, const MoeForwardResult& r,
                                         const std::vector<double>& grad_out) {
  if (absl::Status status = CheckRouter(p); !status.ok()) return status;
  absl::StatusOr<MoeGradients> g = ExpertsBackward(p, r, grad_out);
  for (std::int64_t i = 0; g.ok() && i < p.n; ++i) {
    const Routing routing{{r.topk_ids.begin() + i * p.k, r.topk_ids.begin() + (i + 1) * p.k}, {}, 0};
    const std::vector<double> grad =
        RouteGrad(p.rule, RowOf(p.logits, p.e, i), routing, RowOf(g->topk_weights, p.k, i));
    g->logits.insert(g->logits.end(), grad.begin(), grad.end());
  }
  return g;
}

absl::StatusOr<MoeGradients> ExpertsBackward(const MoeProblem& p, const MoeForwardResult& r,
                                             const std::vector<double>& grad_out) {
  if (absl::Status status = CheckProblem(p); !status.ok()) return status;
  const std::int64_t slots = p.n * p.k;
  if (static_cast<std::int64_t>(grad_out.size()) != p.n * p.d || static_cast<std::int64_t>(r.x.size()) != slots * p.d) {
    return absl::InvalidArgumentError("grad_out, forward: do not fit the problem's sizes");
  }
  const bool on_input = p.rule.weight_on_input;
  const In no_weights(static_cast<const double*>(nullptr));

  std::vector<double> grad_expert = Zeros(slots * p.d), grad_hidden = Zeros(slots * p.f);
  std::vector<double> grad_both = Zeros(slots * 2 * p.f), grad_x = Zeros(slots * p.d);
  WeightedScatter(p.n, p.d, p.k, slots, grad_out, r.slot_pos.data(), on_input ? no_weights : In(r.topk_weights),
                  grad_expert);
  GroupedGemm(p.e, p.d, p.f, grad_expert, nullptr, r.offsets.data(), Transpose(p.down, p.e, p.d, p.f), grad_hidden);
  ActivationBackward(ActivationOf(p), slots, p.f, false, grad_hidden, r.gate_up, grad_both);
  GroupedGemm(p.e, 2 * p.f, p.d, grad_both, nullptr, r.offsets.data(), Transpose(p.gate_up, p.e, 2 * p.f, p.d), grad_x);

  MoeGradients g{.rows = Zeros(p.n * p.d),
                 .topk_weights = Zeros(slots),
                 .gate_up = Zeros(p.e * 2 * p.f * p.d),
                 .down = Zeros(p.e * p.d * p.f)};
  WeightGrad(p.e, p.d, 2 * p.f, grad_both, r.x, r.offsets.data(), g.gate_up);
  WeightGrad(p.e, p.f, p.d, grad_expert, r.hidden, r.offsets.data(), g.down);
  // The weight stands on the experts' outputs or on their inputs: its gradient is a dot product there.
  RoutingWeightGrad(p.n, p.d, p.k, on_input ? grad_x : r.expert_out, on_input ? p.rows : grad_out, r.slot_pos.data(),
                    g.topk_weights);
  GatherReduce(p.n, p.d, p.k, grad_x, r.slot_pos.data(), on_input ? In(r.topk_weights) : no_weights, g.rows);
  return g;
}

}  // namespace expertd::reference
