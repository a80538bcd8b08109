// Gradient of a grouped GEMM's rows: grad_x[r, :] = grad_out[r, :] . w[e(r)]. Part of moe_backward.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain.h"

namespace expertd::cuda {

struct InputGrad {
  std::int64_t positions = 0, experts = 0, in = 0, out_features = 0;
  Element element = Element::kBF16;
  const void* grad_out = nullptr;         // [positions, out_features]
  const void* w = nullptr;                // [experts, out_features, in]
  const std::int32_t* offsets = nullptr;  // [experts + 1]
  void* grad_x = nullptr;                 // [positions, in]; positions past offsets[experts] are untouched
};

// Elements of scratch memory that EnqueueInputGrad needs on the current device.
std::int64_t InputGradScratch(const InputGrad& grad);
absl::Status EnqueueInputGrad(const InputGrad& grad, void* scratch, Stream stream);

}  // namespace expertd::cuda
