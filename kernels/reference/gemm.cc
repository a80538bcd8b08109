// Products over ragged groups of rows: moe_grouped_gemm, moe_weight_grad, and fused_moe_forward made of the other ops.
#include <vector>

#include "kernels/ops_check.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {

void GroupedGemm(std::int64_t e, std::int64_t in, std::int64_t out_features, In x, const std::int32_t* gather,
                 const std::int32_t* offsets, In w, Out out) {
  for (std::int64_t expert = 0; expert < e; ++expert) {
    for (std::int64_t p = offsets[expert]; p < offsets[expert + 1]; ++p) {
      const std::int64_t row = gather == nullptr ? p : gather[p];
      if (row < 0) continue;
      for (std::int64_t o = 0; o < out_features; ++o) {
        double dot = 0;
        for (std::int64_t i = 0; i < in; ++i) dot += x[row * in + i] * w[(expert * out_features + o) * in + i];
        out.Set(p * out_features + o, dot);
      }
    }
  }
}

void WeightGrad(std::int64_t e, std::int64_t in, std::int64_t out_features, In grad_out, In x,
                const std::int32_t* offsets, Out grad_w) {
  for (std::int64_t expert = 0; expert < e; ++expert) {
    for (std::int64_t o = 0; o < out_features; ++o) {
      for (std::int64_t i = 0; i < in; ++i) {
        double sum = 0;
        for (std::int64_t p = offsets[expert]; p < offsets[expert + 1]; ++p) {
          sum += grad_out[p * out_features + o] * x[p * in + i];
        }
        grad_w.Set((expert * out_features + o) * in + i, sum);
      }
    }
  }
}

absl::Status MoeGroupedGemm(const MoeGroupedGemmArgs& args) {
  if (absl::Status status = Check(args); !status.ok() || args.positions == 0) return status;
  const absl::Span<const std::int32_t> offsets(args.offsets, static_cast<std::size_t>(args.e + 1));
  if (absl::Status status = CheckOffsets(offsets, args.positions); !status.ok()) return status;
  GroupedGemm(args.e, args.in, args.out_features, {args.x, args.dtype}, args.gather, args.offsets, {args.w, args.dtype},
              {args.out, args.dtype});
  return absl::OkStatus();
}

absl::Status MoeWeightGrad(const MoeWeightGradArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const absl::Span<const std::int32_t> offsets(args.offsets, static_cast<std::size_t>(args.e + 1));
  if (absl::Status status = CheckOffsets(offsets, args.positions); !status.ok()) return status;
  WeightGrad(args.e, args.in, args.out_features, {args.grad_out, args.dtype}, {args.x, args.dtype}, args.offsets,
             {args.grad_w, args.w_dtype});
  return absl::OkStatus();
}

absl::Status FusedMoeForward(const FusedMoeForwardArgs& args) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  const std::int64_t slots = args.n * args.k, d = args.d, f = args.f;
  if (absl::Status status = CheckIndices("ids", {args.ids, static_cast<std::size_t>(slots)}, args.e); !status.ok()) {
    return status;
  }
  const In rows(args.rows, args.dtype);
  // Rounded to args.dtype where the contract says so: the scaled rows and the activation.
  std::vector<std::byte> scaled(static_cast<std::size_t>(BytesOf(args.dtype, d)));
  std::vector<std::byte> hidden(static_cast<std::size_t>(BytesOf(args.dtype, f)));
  std::vector<double> both(static_cast<std::size_t>(2 * f)), expert_out(static_cast<std::size_t>(slots * d));
  std::vector<std::int32_t> slot_row(static_cast<std::size_t>(slots));
  for (std::int64_t s = 0; s < slots; ++s) {
    const std::int64_t e = args.ids[s];
    slot_row[s] = static_cast<std::int32_t>(e < 0 ? -1 : s);
    if (e < 0) continue;
    const double factor = args.weight_on_input ? args.weights[s] : 1.0;
    for (std::int64_t i = 0; i < d; ++i) Out(scaled.data(), args.dtype).Set(i, factor * rows[s / args.k * d + i]);
    // One position of one expert: a grouped product of its own.
    const std::int32_t one[] = {0, 1};
    const auto at = [&](const void* base, std::int64_t elements) {
      return In(static_cast<const std::byte*>(base) + BytesOf(args.dtype, elements), args.dtype);
    };
    GroupedGemm(1, d, 2 * f, {scaled.data(), args.dtype}, nullptr, one, at(args.gate_up, e * 2 * f * d), both);
    ActivationForward({args.activation, args.limit, args.alpha}, 1, f, false, both, {hidden.data(), args.dtype});
    GroupedGemm(1, f, d, {hidden.data(), args.dtype}, nullptr, one, at(args.down, e * d * f), &expert_out[s * d]);
  }
  const In weights = args.weight_on_input ? In(static_cast<const float*>(nullptr)) : In(args.weights);
  GatherReduce(args.n, d, args.k, expert_out, slot_row.data(), weights, {args.out, args.out_dtype});
  return absl::OkStatus();
}

}  // namespace expertd::reference
