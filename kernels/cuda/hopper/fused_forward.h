// The experts of a layer in one persistent kernel on Hopper, for plain callers: first product, activation, second
// product.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/fused_config.h"

namespace expertd::cuda {

// Slots sorted by expert are positions [0, P). Sizes of experts are read on the device. bf16 throughout; d and f are
// multiples of 64; all pointers 16-byte aligned.
struct FusedForwardLaunch {
  std::int64_t positions = 0, experts = 0, d = 0, f = 0;  // positions: capacity, offsets[experts] of them are used
  FusedTileId tile = FusedTileId::kFew;
  Gate gate = Gate::kSilu;
  float limit = 7.0f, alpha = 1.702f;
  int blocks = 1;  // of the grid

  const std::int32_t* offsets = nullptr;       // [experts + 1]
  const std::int32_t* sorted_slots = nullptr;  // [positions]
  // Tiles that gather: the row of a position is sorted_slots[position] / rows_divisor, at row_addresses[row], or in
  // `rows` [*, d]. Others: `rows` [positions, d] has the row of each position.
  const void* rows = nullptr;
  const std::uint64_t* row_addresses = nullptr;
  int rows_divisor = 1;

  const void* gate_up = nullptr;        // [experts, 2 f, d]  gate rows first
  const void* down = nullptr;           // [experts, d, f]
  const float* gate_up_bias = nullptr;  // [experts, 2 f] or null

  void* hidden = nullptr;            // [positions, f]
  void* slots = nullptr;             // [positions, d]  each position's expert output
  std::int32_t* counters = nullptr;  // [FusedCounters()]  zero when the kernel starts
};

// Tickets, and for each token tile the finished tiles of the first product.
constexpr std::int64_t FusedCounters(FusedTileId tile, std::int64_t positions, std::int64_t experts) {
  return 1 + MaxTokenTiles(ShapeOf(tile), positions, experts);
}

// Enqueues one kernel on `stream` (a cudaStream_t) that starts while the stream's last kernel still runs, and waits for
// it; so may the next one start, if it waits likewise. The answer is a cudaError_t.
int LaunchFusedForward(const FusedForwardLaunch& launch, void* stream);
// The part of it for one activation, each in a file of its own.
template <Gate kGate>
int LaunchFusedGate(const FusedForwardLaunch& launch, void* stream);

}  // namespace expertd::cuda
