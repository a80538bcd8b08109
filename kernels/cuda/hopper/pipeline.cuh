// The block's shared memory: a ring of stages with their barriers, each a step of K, weights and token rows; and a few
// lines through which results leave.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/fused_config.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

// Warps that multiply, and all threads.
template <FusedTileId kId>
inline constexpr int kMultiplyingWarps = ShapeOf(kId).groups * 4;
template <FusedTileId kId>
inline constexpr int kFusedThreads = kMultiplyingWarps<kId> * 32 + 128;
// Warps of the producing warpgroup: weights and tickets; token rows; news of results.
inline constexpr int kRowsThreads = 64;
template <FusedTileId kId>
inline constexpr int kWeightsWarp = kMultiplyingWarps<kId>;
template <FusedTileId kId>
inline constexpr int kRowsWarp = kWeightsWarp<kId> + 1;
template <FusedTileId kId>
inline constexpr int kNewsWarp = kRowsWarp<kId> + 2;
template <FusedTileId kId>
inline constexpr int kRingReaders = kMultiplyingWarps<kId> + kRowsThreads / 32 + 1;

// Addresses in shared memory. A stage: weight rows (or a packed block), then token rows, lines of 128 bytes whose
// chunks are swizzled. Scales of token rows are among the weights.
template <FusedTileId kId>
struct FusedShared {
  static constexpr FusedTile kTile = ShapeOf(kId);

  std::uint32_t stages;    // 1024-byte aligned
  std::uint32_t staging;   // StagedBytes()
  std::uint32_t barriers;  // stage full, stage empty: [stages] each; results stored; ring's
  void* ring;
  std::int32_t* starts;         // [experts + 1]
  std::int32_t* first_offsets;  // [experts + 1], where results will lie: for the block's first tile only

  __device__ explicit FusedShared(unsigned char* memory) {
    unsigned char* const base = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
    stages = SharedAddress(base);
    unsigned char* at = base + kTile.stages * kTile.stage_bytes();
    staging = SharedAddress(at);
    first_offsets = reinterpret_cast<std::int32_t*>(at);
    at += StagedBytes(kTile);
    ring = at;
    at += kWorkRing * kWorkItemBytes;
    barriers = SharedAddress(at);
    starts = reinterpret_cast<std::int32_t*>(at + FusedBarriers(kTile) * 8);
  }

  __device__ std::uint32_t Weights(int stage) const { return stages + stage * kTile.stage_bytes(); }
  __device__ std::uint32_t Rows(int stage, int line = 0) const {
    return Weights(stage) + kTile.weight_bytes() + line * kTile.token_line_bytes();
  }
  __device__ std::uint32_t RowScales(int stage) const { return Weights(stage) + kTile.row_scales_at(); }
  // Lines of kStagedPitch bytes, a warpgroup's own.
  __device__ std::uint32_t Staging(int group) const { return staging + group * StagedTokens(kTile) * kStagedPitch; }
  // Weights and rows are there.
  __device__ Barrier Full(int stage) const { return At(stage); }
  __device__ Barrier Empty(int stage) const { return At(kTile.stages + stage); }
  // The results of the block's `tile`th tile of the first product are on their way. The work ring keeps warps from
  // being kStoredBarriers tiles apart.
  __device__ Barrier Stored(unsigned tile) const { return At(2 * kTile.stages + tile % kStoredBarriers); }
  __device__ static std::uint32_t StoredParity(unsigned tile) { return tile / kStoredBarriers & 1; }
  __device__ std::uint32_t RingBarriers() const { return At(2 * kTile.stages + kStoredBarriers).address(); }

  // By one thread.
  __device__ void InitBarriers() const {
    for (int i = 0; i < kTile.stages; ++i) {
      Full(i).Init(1 + kRowsThreads);
      Empty(i).Init(kMultiplyingWarps<kId>);
    }
    for (int i = 0; i < kStoredBarriers; ++i) Stored(i).Init(kMultiplyingWarps<kId>);
  }

 private:
  __device__ Barrier At(int index) const { return Barrier(barriers + index * 8); }
};

// Walks through stages, round after round.
template <int kStages>
class StageWalk {
 public:
  __device__ int stage() const { return stage_; }
  __device__ int before() const { return stage_ == 0 ? kStages - 1 : stage_ - 1; }
  __device__ std::uint32_t parity() const { return parity_; }
  __device__ void Advance() {
    stage_ = stage_ + 1 == kStages ? 0 : stage_ + 1;
    parity_ ^= stage_ == 0;
  }

 private:
  int stage_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace expertd::cuda
