// How moe_weight_grad is divided: plain arithmetic, tested without a GPU.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// A block computes out x in elements of one expert's gradient, `positions` positions at a time, in order.
inline constexpr int kGradTileOut = 128, kGradTileIn = 256, kGradPositions = 32, kGradStages = 4;
inline constexpr int kGradWarpsOut = 2, kGradWarpsIn = 4;
constexpr int GradSharedBytes(int stages) { return stages * kGradPositions * (kGradTileOut + kGradTileIn) * 2; }
static_assert(GradSharedBytes(kGradStages) <= 99 * 1024, "every device from sm_80 holds a block");

constexpr std::int64_t GradTiles(std::int64_t experts, std::int64_t out_features, std::int64_t in) {
  return experts * CeilDiv(out_features, kGradTileOut) * CeilDiv(in, kGradTileIn);
}

// Tensor cores take bf16 rows of whole 16-byte vectors. Decided by the shape alone: the other kernel's bits differ.
constexpr bool GradUsesTensorCores(Element element, std::int64_t in, std::int64_t out_features) {
  constexpr int kVector = VectorElements(Element::kBF16);
  return element == Element::kBF16 && in % kVector == 0 && out_features % kVector == 0;
}

}  // namespace expertd::cuda
