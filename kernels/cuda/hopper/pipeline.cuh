// The block's shared memory: a ring of stages with their barriers. A stage holds a step of K, weights and token rows;
// after a tile's last step, stages of the same ring hold its results on their way out, so that no memory is set aside
// for them.
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
// Warps of the producing warpgroup: weights and tickets; token rows; results.
inline constexpr int kRowsThreads = 64;
template <FusedTileId kId>
inline constexpr int kWeightsWarp = kMultiplyingWarps<kId>;
template <FusedTileId kId>
inline constexpr int kRowsWarp = kWeightsWarp<kId> + 1;
template <FusedTileId kId>
inline constexpr int kStoreWarp = kRowsWarp<kId> + 2;
template <FusedTileId kId>
inline constexpr int kRingReaders = kMultiplyingWarps<kId> + kRowsThreads / 32 + 1;

// Addresses in shared memory. A stage: weight rows (or a packed block), then token rows, lines of 128 bytes whose
// chunks are swizzled; or staged results, lines of kStagedPitch bytes. Scales of token rows are among the weights.
template <FusedTileId kId>
struct FusedShared {
  static constexpr FusedTile kTile = ShapeOf(kId);

  std::uint32_t stages;    // 1024-byte aligned
  std::uint32_t barriers;  // stage full, stage empty, results staged: [stages] each; ring's
  void* ring;
  std::uint32_t mail;    // [kMail]
  std::int32_t* starts;  // [experts + 1]

  __device__ explicit FusedShared(unsigned char* memory) {
    unsigned char* const base = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
    stages = SharedAddress(base);
    unsigned char* at = base + kTile.stages * kTile.stage_bytes();
    ring = at;
    at += kWorkRing * kWorkItemBytes;
    barriers = SharedAddress(at);
    starts = reinterpret_cast<std::int32_t*>(at + (3 * kTile.stages + 2 * kWorkRing) * 8);
  }

  __device__ std::uint32_t Weights(int stage) const { return stages + stage * kTile.stage_bytes(); }
  __device__ std::uint32_t Rows(int stage, int line = 0) const {
    return Weights(stage) + kTile.weight_bytes() + line * kTile.token_line_bytes();
  }
  __device__ std::uint32_t RowScales(int stage) const { return Weights(stage) + kTile.row_scales_at(); }
  // Weights and rows are there.
  __device__ Barrier Full(int stage) const { return At(stage); }
  __device__ Barrier Empty(int stage) const { return At(kTile.stages + stage); }
  // Of the block's `round`th results; as many may be on their way as there are stages.
  __device__ Barrier Staged(unsigned round) const { return At(2 * kTile.stages + round % kTile.stages); }
  __device__ static std::uint32_t StagedParity(unsigned round) { return round / kTile.stages & 1; }
  __device__ std::uint32_t RingBarriers() const { return At(3 * kTile.stages).address(); }

  // By one thread.
  __device__ void InitBarriers() const {
    for (int i = 0; i < kTile.stages; ++i) {
      Full(i).Init(1 + kRowsThreads);
      Empty(i).Init(kMultiplyingWarps<kId>);
      Staged(i).Init(kMultiplyingWarps<kId>);
    }
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
  __device__ void Advance(int steps) {
    const unsigned to = stage_ + steps;
    stage_ = to % kStages;
    parity_ ^= to / kStages & 1;
  }

 private:
  int stage_ = 0;
  std::uint32_t parity_ = 0;
};

}  // namespace expertd::cuda
