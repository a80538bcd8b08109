// The experts of a layer in one persistent kernel on Hopper, for plain callers: first product, activation, second
// product.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/fused_config.h"

namespace expertd::cuda {

// Up to so many, each block may find out for itself where experts begin; more were not tried.
inline constexpr std::int64_t kFoundPositions = 4096;

// One product alone, without gate_up: slots = rows . down^T, where rows are `rows` gathered by sorted_slots (a position
// whose slot is negative is not written), or `hidden` where that is null. It needs no counters.
//
// Slots sorted by expert are positions [0, P). Sizes of experts are read on the device. Rows are bf16, or e4m3 for
// weights kFp8Both (fp8_rows.h); d and f are multiples of 64; all pointers 16-byte aligned.
struct FusedForwardLaunch {
  std::int64_t positions = 0, experts = 0, d = 0, f = 0;  // positions: capacity, offsets[experts] of them are used
  WeightCode weights = WeightCode::kBF16;                 // bf16, fp8 (one of two) or mxfp4
  FusedTileId tile = FusedTileId::kSome;                  // one of these weights
  Gate gate = Gate::kSilu;
  float limit = 7.0f, alpha = 1.702f;
  int blocks = 1;            // of the grid
  int tokens = kUnitTokens;  // where warps stream: token rows of a unit, at most kUnitTokens; more cost shared memory

  // Expert of each slot, -1: none; or null. With ids the kernel begins while the one before it still makes the maps:
  // ids, rows (where warps stream) and zero counters were there before that one began.
  const std::int32_t* ids = nullptr;           // [positions]
  const std::int32_t* offsets = nullptr;       // [experts + 1]
  const std::int32_t* sorted_slots = nullptr;  // [positions]
  // The row of a position is sorted_slots[position] / rows_divisor of `rows` [*, d].
  const void* rows = nullptr;
  int rows_divisor = 1;
  const float* row_scales = nullptr;  // of e4m3: [lines of d, row_scale_pitch]
  std::int64_t row_scale_pitch = 0;   // as many rows

  // Or packed (packed_weights.h), gate_up as kGateUp, down as kRows, as codes always are.
  bool packed = false;
  const void* gate_up = nullptr;        // [experts, 2 f, d]  gate rows first
  const void* down = nullptr;           // [experts, d, f]
  const float* gate_up_bias = nullptr;  // [experts, 2 f] or null

  void* hidden = nullptr;            // [positions, f], of e4m3 in whole lines of 128
  float* hidden_scales = nullptr;    // of e4m3: [lines of f, positions]
  void* slots = nullptr;             // [positions, d]  each position's expert output
  std::int32_t* counters = nullptr;  // [FusedCounters()]  zero when the kernel before this one has ended

  // Whether each block finds for itself where experts begin, before it waits.
  constexpr bool finds_offsets() const { return ids != nullptr && positions <= kFoundPositions; }
  constexpr bool one_product() const { return gate_up == nullptr; }
  // Whether this product gathers its rows.
  constexpr bool gathers(bool first_product) const {
    return sorted_slots != nullptr && (first_product || one_product());
  }
};

// Tickets, and for each token tile the finished tiles of the first product.
constexpr std::int64_t FusedCounters(FusedTileId tile, std::int64_t positions, std::int64_t experts) {
  return 1 + MaxTokenTiles(ShapeOf(tile), positions, experts);
}

// Enqueues one kernel on `stream` (a cudaStream_t) that starts while the stream's last kernel still runs, and waits for
// it; so may the next one start, if it waits likewise. The answer is a cudaError_t.
int LaunchFusedForward(const FusedForwardLaunch& launch, void* stream);
// The parts of it, each in a file of its own: bf16 weights and one activation; packed codes and any.
template <Gate kGate>
int LaunchFusedGate(const FusedForwardLaunch& launch, void* stream);
int LaunchStream(const FusedForwardLaunch& launch, void* stream);
template <WeightCode kCode>
int LaunchFusedCodes(const FusedForwardLaunch& launch, void* stream);

}  // namespace expertd::cuda
