// Device side of moe_weight_grad, for plain callers. Both enqueue one kernel on `stream` (a cudaStream_t) and answer a
// cudaError_t.
#pragma once

#include <cstdint>

#include "kernels/cuda/weight_grad_config.h"

namespace expertd::cuda {

struct WeightGradLaunch {
  std::int64_t experts = 0, in = 0, out_features = 0;
  Element element = Element::kBF16, grad_element = Element::kF32;
  int blocks = 1;
  const void* grad_out = nullptr;         // [positions, out_features]
  const void* x = nullptr;                // [positions, in]
  const std::int32_t* offsets = nullptr;  // [experts + 1]
  void* grad_w = nullptr;                 // [experts, out_features, in]
};

// bf16 rows, `in` and `out_features` multiples of 8, all pointers 16-byte aligned.
int LaunchWeightGrad(const WeightGradLaunch& launch, void* stream);
// Any shape; bf16 or f32 rows.
int LaunchWeightGradPlain(const WeightGradLaunch& launch, void* stream);

}  // namespace expertd::cuda
