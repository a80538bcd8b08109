// Device side of the ops that move and combine rows, for plain callers. Each enqueues on `stream` (a cudaStream_t) and
// answers a cudaError_t. `vectorised`: rows are accessed 16 bytes at a time, so D is a multiple of VectorElements and
// every row pointer is aligned.
#pragma once

#include <cstdint>

#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/plain.h"
#include "kernels/cuda/row_ops_config.h"

namespace expertd::cuda {

// out[n] = sum over k of weights[n, k] * expert_out[slot_row[n, k]]; weights may be null.
struct GatherReduceLaunch {
  std::int64_t n = 0, d = 0, k = 0;
  Element element = Element::kBF16, out_element = Element::kBF16;
  bool vectorised = false;
  const void* expert_out = nullptr;
  const std::int32_t* slot_row = nullptr;
  const float* weights = nullptr;
  void* out = nullptr;
  // Start while the stream's last kernel runs, and wait for it (Hopper and newer). Only expert_out is its: it let this
  // one start after its own wait, so slot_row and weights are there.
  bool early = false;
};
int LaunchGatherReduce(const GatherReduceLaunch& launch, void* stream);

// to[slot_row[s]] = weights[s] * from[s / k], each row read once and written K times; and rows of `to` that no slot
// names set to zero by the same launch. `tail` elements follow each written row: zero, but for the first four bytes,
// which are tail_ids[s] (dispatch_pack). d counts the elements without the tail.
struct SpreadRowsLaunch {
  std::int64_t n = 0, d = 0, k = 0, tail = 0;
  Element element = Element::kBF16;
  bool vectorised = false;
  const void* from = nullptr;
  const std::int32_t* slot_row = nullptr;  // [n * k]; null: slot s goes to row s
  const float* weights = nullptr;          // [n * k]; null: ones
  const std::int32_t* tail_ids = nullptr;
  void* to = nullptr;

  // Rows [0, cleared) are set to zero where they are not named. What is named is known in one of three ways: by
  // `counts`, of a batched layout whose expert e holds positions [0, counts[e]) of max_tokens; by `marks`, one byte a
  // row, which the launch fills itself; or else every block looks through all slots.
  std::int64_t cleared = 0, max_tokens = 1;
  const std::int32_t* counts = nullptr;
  std::uint8_t* marks = nullptr;

  HeldRows held;  // where the device holds them (ChooseHeldRows); then `vectorised`, and no marks
  bool sorted =
      false;  // the stream's last kernel made slot_row and nothing else that this reads: held rows start early
};
int LaunchSpreadRows(const SpreadRowsLaunch& launch, void* stream);
// The part of it for held rows.
int LaunchHeldRows(const SpreadRowsLaunch& launch, void* stream);

// LaunchExpertSort(sort) and then LaunchSpreadRows(spread) as one kernel, for few slots (CountSlots). `sort` is not
// padded (block = 1) and has no block_experts; spread.slot_row is sort.positions.
int LaunchSortAndSpread(const ExpertSortLaunch& sort, const SpreadRowsLaunch& spread, void* stream);

// grad_weights[s] = dot(expert_out[slot_row[s]], grad_out[s / k]), or 0 where slot_row is -1.
struct RoutingWeightGradLaunch {
  std::int64_t n = 0, d = 0, k = 0;
  Element element = Element::kBF16;
  bool vectorised = false;
  const void* expert_out = nullptr;
  const void* grad_out = nullptr;
  const std::int32_t* slot_row = nullptr;
  float* grad_weights = nullptr;
};
int LaunchRoutingWeightGrad(const RoutingWeightGradLaunch& launch, void* stream);

}  // namespace expertd::cuda
