// How much of a batch the batched path multiplies at once: plain arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// Where everything of one pass lies, every expert having room for `rows` rows.
struct BatchedPlan {
  std::int64_t rows = 0;  // 0: the memory does not hold one row an expert
  std::int64_t x = 0, gate_up = 0, hidden = 0, out = 0, offsets = 0, bytes = 0;  // bytes from the beginning
};

constexpr BatchedPlan PlaceBatched(std::int64_t experts, std::int64_t rows, std::int64_t d, std::int64_t f, int size) {
  const auto aligned = [](std::int64_t bytes) { return CeilDiv(bytes, 256) * 256; };
  BatchedPlan plan = {.rows = rows};
  const std::int64_t positions = experts * rows;
  plan.gate_up = aligned(positions * d * size);
  plan.hidden = plan.gate_up + aligned(positions * 2 * f * 4);
  plan.out = plan.hidden + aligned(positions * f * size);
  plan.offsets = plan.out + aligned(positions * d * size);
  plan.bytes = plan.offsets + aligned((experts + 1) * 4);
  return plan;
}

// As many of the `wanted` rows of each expert as `memory` bytes hold. What does not fit is done in another pass:
// nothing is dropped.
constexpr BatchedPlan PlanBatched(std::int64_t experts, std::int64_t wanted, std::int64_t d, std::int64_t f, int size,
                                  std::int64_t memory) {
  std::int64_t low = 0, high = wanted + 1;  // low rows fit, high do not or are not wanted
  while (high - low > 1) {
    const std::int64_t middle = (low + high) / 2;
    (PlaceBatched(experts, middle, d, f, size).bytes <= memory ? low : high) = middle;
  }
  return low == 0 ? BatchedPlan{} : PlaceBatched(experts, low, d, f, size);
}

}  // namespace expertd::cuda
