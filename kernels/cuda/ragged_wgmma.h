// The two gradients of a grouped GEMM y[r, :] = w[e(r)] . x[r, :] on Hopper's warpgroup products, for plain callers.
// Both have the output's gradient [P, out] as their left operand; it is summed away along positions or along features.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

enum class SumOver : std::uint8_t {
  kPositions,  // result[e, o, i] = sum over positions r of e: grad_out[r, o] * right[r, i]     right = x [P, in]
  kFeatures,   // result[r, i] = sum over o: grad_out[r, o] * right[e(r), o, i]                 right = w [E, out, in]
};

// bf16 operands, `in` and `out_features` multiples of 8, all pointers 16-byte aligned, positions > 0.
struct RaggedWgmmaLaunch {
  SumOver sum = SumOver::kPositions;
  std::int64_t positions = 0, experts = 0, in = 0, out_features = 0;
  Element result_element = Element::kF32;
  int blocks = 1;
  const void* grad_out = nullptr;
  const void* right = nullptr;
  const std::int32_t* offsets = nullptr;  // [experts + 1]
  void* result = nullptr;
};

// Enqueues one kernel on `stream` (a cudaStream_t); the answer is a cudaError_t.
int LaunchRaggedWgmma(const RaggedWgmmaLaunch& launch, void* stream);

}  // namespace expertd::cuda
