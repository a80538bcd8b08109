// How the gradients of ragged groups are divided on Hopper: plain arithmetic, tested without a GPU.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// A block computes rows x columns sums, `step` of what is summed over at a time. Boxes are what one copy brings.
inline constexpr int kRaggedRows = 128, kRaggedColumns = 256, kRaggedStep = 64, kRaggedStages = 4, kRaggedBox = 64;
inline constexpr int kRaggedBoxBytes = kRaggedBox * kRaggedStep * 2;
inline constexpr int kRaggedStageBytes = (kRaggedRows + kRaggedColumns) / kRaggedBox * kRaggedBoxBytes;

// Stages (1024-byte aligned, whatever the base is), two barriers a stage, and the schedule's starts.
constexpr int RaggedSharedBytes(std::int64_t experts) {
  return static_cast<int>(1024 + kRaggedStages * kRaggedStageBytes + 2 * kRaggedStages * 8 + (experts + 1) * 4);
}

// Warpgroup products are Hopper's alone, and take bf16 rows of whole 16-byte vectors. Decided by device and shape: the
// bits of other kernels differ.
constexpr bool UsesRaggedWgmma(const DeviceLimits& device, Element element, std::int64_t in,
                               std::int64_t out_features) {
  constexpr int kVector = VectorElements(Element::kBF16);
  return device.compute_capability == 90 && element == Element::kBF16 && in % kVector == 0 &&
         out_features % kVector == 0;
}

}  // namespace expertd::cuda
