// Slots back into rows and the way back: fused_gather_reduce, fused_weighted_scatter, fused_routing_weight_grad.
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/ops_check.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {

void GatherReduce(std::int64_t n, std::int64_t d, std::int64_t k, In expert_out, const std::int32_t* slot_row,
                  In weights, Out out) {
  for (std::int64_t i = 0; i < n; ++i) {
    for (std::int64_t j = 0; j < d; ++j) {
      double sum = 0;
      for (std::int64_t s = i * k; s < (i + 1) * k; ++s) {
        if (slot_row[s] < 0) continue;
        sum += (weights.empty() ? 1.0 : weights[s]) * expert_out[slot_row[s] * d + j];
      }
      out.Set(i * d + j, sum);
    }
  }
}

void WeightedScatter(std::int64_t n, std::int64_t d, std::int64_t k, std::int64_t r, In grad_out,
                     const std::int32_t* slot_row, In weights, Out grad_expert) {
  for (std::int64_t i = 0; i < r * d; ++i) grad_expert.Set(i, 0.0);
  for (std::int64_t s = 0; s < n * k; ++s) {
    if (slot_row[s] < 0) continue;
    const double w = weights.empty() ? 1.0 : weights[s];
    for (std::int64_t j = 0; j < d; ++j) grad_expert.Set(slot_row[s] * d + j, w * grad_out[s / k * d + j]);
  }
}

void RoutingWeightGrad(std::int64_t n, std::int64_t d, std::int64_t k, In expert_out, In grad_out,
                       const std::int32_t* slot_row, Out grad_weights) {
  for (std::int64_t s = 0; s < n * k; ++s) {
    double dot = 0;
    for (std::int64_t j = 0; slot_row[s] >= 0 && j < d; ++j) {
      dot += expert_out[slot_row[s] * d + j] * grad_out[s / k * d + j];
    }
    grad_weights.Set(s, dot);
  }
}

namespace {

// Of an op whose arguments have n, k, r and slot_row.
template <class Args>
absl::Status CheckSlots(const Args& args) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  return CheckIndices("slot_row", {args.slot_row, static_cast<std::size_t>(args.n * args.k)}, args.r);
}

// Distinct rows, so that a scatter writes each at most once.
absl::Status CheckDistinct(const std::int32_t* slot_row, std::int64_t slots, std::int64_t r) {
  std::vector<bool> seen(static_cast<std::size_t>(r));
  for (std::int64_t s = 0; s < slots; ++s) {
    if (slot_row[s] < 0) continue;
    if (seen[slot_row[s]]) {
      return absl::InvalidArgumentError(absl::StrFormat("slot_row[%d]: %d stands there twice", s, slot_row[s]));
    }
    seen[slot_row[s]] = true;
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status FusedGatherReduce(const FusedGatherReduceArgs& args) {
  if (absl::Status status = CheckSlots(args); !status.ok()) return status;
  GatherReduce(args.n, args.d, args.k, {args.expert_out, args.dtype}, args.slot_row, args.weights,
               {args.out, args.out_dtype});
  return absl::OkStatus();
}

absl::Status FusedWeightedScatter(const FusedWeightedScatterArgs& args) {
  if (absl::Status status = CheckSlots(args); !status.ok()) return status;
  if (absl::Status status = CheckDistinct(args.slot_row, args.n * args.k, args.r); !status.ok()) return status;
  WeightedScatter(args.n, args.d, args.k, args.r, {args.grad_out, args.dtype}, args.slot_row, args.weights,
                  {args.grad_expert, args.dtype});
  return absl::OkStatus();
}

absl::Status FusedRoutingWeightGrad(const FusedRoutingWeightGradArgs& args) {
  if (absl::Status status = CheckSlots(args); !status.ok()) return status;
  RoutingWeightGrad(args.n, args.d, args.k, {args.expert_out, args.dtype}, {args.grad_out, args.dtype}, args.slot_row,
                    args.grad_weights);
  return absl::OkStatus();
}

}  // namespace expertd::reference
