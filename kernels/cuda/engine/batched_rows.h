// Rows between the order of the sort and the batched layout, for plain callers. Each enqueues one kernel on `stream` (a
// cudaStream_t) and answers a cudaError_t.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// Of expert e's slots, sorted positions [offsets[e], offsets[e + 1]), those from the `first`-th on, `rows` at most.
struct BatchedRowsLaunch {
  std::int64_t experts = 0, rows = 0, d = 0, first = 0;
  Element element = Element::kBF16;
  const std::int32_t* offsets = nullptr;  // [experts + 1]
};

// batched[e, p] = x[sorted_slots[that position] / rows_divisor], zeros where there is none; batch_offsets[e] = e *
// rows.
struct ToBatchedLaunch {
  BatchedRowsLaunch part;
  const std::int32_t* sorted_slots = nullptr;
  const void* x = nullptr;  // [*, d]
  std::int64_t rows_divisor = 1;
  void* batched = nullptr;                // [experts, rows, d]
  std::int32_t* batch_offsets = nullptr;  // [experts + 1]
};
int LaunchToBatched(const ToBatchedLaunch& launch, void* stream);

// sorted[that position] = batched[e, p].
struct FromBatchedLaunch {
  BatchedRowsLaunch part;
  const void* batched = nullptr;  // [experts, rows, d]
  void* sorted = nullptr;         // [positions, d]
};
int LaunchFromBatched(const FromBatchedLaunch& launch, void* stream);

}  // namespace expertd::cuda
