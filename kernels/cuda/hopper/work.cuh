// What a block does next: tickets drawn from a counter in memory, decoded by one thread, handed to the block's warps
// through a ring in shared memory.
//
// Tickets are ordered: all tiles of the first product, then all of the second. Whoever waits for a tile waits for a
// smaller ticket, drawn by a block that is running; so blocks need not all be resident, and two batches may share
// the device.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

enum class Phase : int { kUp, kDown, kDone };

struct WorkItem {
  Phase phase;
  int expert;
  int first, rows;  // positions of the token tile
  int column;       // weight tile, from 0
  int token_tile;   // of all experts
};
static_assert(sizeof(WorkItem) == kWorkItemBytes);

// Lines of a token row, and the stages that they take; the last one may hold fewer than the others.
template <FusedTileId kId>
__device__ int LinesOf(const FusedForwardLaunch& launch, Phase phase) {
  constexpr FusedTile kTile = ShapeOf(kId);
  return static_cast<int>(kTile.row_lines(phase == Phase::kUp ? launch.d : launch.f));
}
template <FusedTileId kId>
__device__ int StepsOf(const FusedForwardLaunch& launch, Phase phase) {
  constexpr int kLines = ShapeOf(kId).lines();
  return (LinesOf<kId>(launch, phase) + kLines - 1) / kLines;
}

// Positions into which the counters are divided.
struct Counters {
  std::int32_t* base;
  __device__ std::int32_t* ticket() const { return base; }
  __device__ std::int32_t* up_done(int token_tile) const { return base + 1 + token_tile; }
};

class Work {
 public:
  // By all threads of the block, kThreads of them; `starts` [experts + 1] in shared memory, `offsets` there or not.
  template <int kThreads>
  __device__ void Build(const FusedForwardLaunch& launch, const FusedTile& tile, const std::int32_t* offsets,
                        std::int32_t* starts) {
    offsets_ = offsets;
    tokens_ = tile.tokens;
    up_.Build<kThreads>(offsets, static_cast<int>(launch.experts), tile.tokens,
                        launch.one_product() ? 0 : static_cast<int>(CeilDiv(2 * launch.f, tile.weights())), starts);
    down_ = up_.With(static_cast<int>(CeilDiv(launch.d, tile.weights())));
  }

  // From now on, the same offsets are read here.
  __device__ void ReadFrom(const std::int32_t* offsets) {
    offsets_ = offsets;
    up_.ReadFrom(offsets);
    down_.ReadFrom(offsets);
  }

  __device__ int up_tiles() const { return up_.weight_tiles(); }  // of one token tile

  __device__ WorkItem At(std::int64_t ticket) const {
    if (ticket < up_.tiles()) return Tile(Phase::kUp, up_, ticket);
    ticket -= up_.tiles();
    if (ticket < down_.tiles()) return Tile(Phase::kDown, down_, ticket);
    WorkItem done = {};
    done.phase = Phase::kDone;
    return done;
  }

 private:
  // An expert's rows are shared out evenly between its token tiles, in multiples of 8.
  __device__ WorkItem Tile(Phase phase, const TileSchedule& schedule, std::int64_t ticket) const {
    const GroupTile tile = schedule.At(ticket);
    const int begin = offsets_[tile.expert], end = offsets_[tile.expert + 1];
    const int before = schedule.first_token_tile(tile.expert);
    const int tiles = schedule.first_token_tile(tile.expert + 1) - before;
    const int index = (tile.first_position - begin) / tokens_;
    const int share = (end - begin + tiles * 8 - 1) / (tiles * 8) * 8;
    const int first = begin + index * share;
    return {phase, tile.expert, first, min(share, end - first), tile.weight_tile, before + index};
  }

  const std::int32_t* offsets_;
  int tokens_;
  TileSchedule up_, down_;
};

// Where experts begin, from their slots; `offsets` [experts + 1] in shared memory. By all threads of the block.
template <int kThreads>
__device__ void FindOffsets(const FusedForwardLaunch& launch, std::int32_t* offsets) {
  const int experts = static_cast<int>(launch.experts), slots = static_cast<int>(launch.positions);
  for (int e = threadIdx.x; e < experts; e += kThreads) offsets[e] = 0;
  __syncthreads();
#pragma unroll 4
  for (int slot = threadIdx.x; slot < slots; slot += kThreads) {
    const int expert = launch.ids[slot];
    if (expert >= 0) atomicAdd(&offsets[expert], 1);  // integers: the order does not show
  }
  __syncthreads();
  RunningSums<kThreads>(experts, offsets, [offsets](int e) { return offsets[e]; });
}

// One writer, kReaders warps that read. Each keeps its own position.
template <int kReaders>
class WorkRing {
 public:
  __device__ WorkRing(WorkItem* items, std::uint32_t barriers) : items_(items), barriers_(barriers) {}
  __device__ void Init() const {
    for (int i = 0; i < kWorkRing; ++i) {
      Full(i).Init(1);
      Empty(i).Init(kReaders);
    }
  }
  // By the writing thread.
  __device__ void Push(const WorkItem& item) {
    const int slot = next_ % kWorkRing;
    Empty(slot).Wait((next_ / kWorkRing & 1) ^ 1);
    items_[slot] = item;
    Full(slot).Arrive();
    ++next_;
  }
  // By all threads of a reading warp.
  __device__ WorkItem Pop() {
    const int slot = next_ % kWorkRing;
    Full(slot).Wait(next_ / kWorkRing & 1);
    const WorkItem item = items_[slot];
    __syncwarp();
    if (threadIdx.x % 32 == 0) Empty(slot).Arrive();
    ++next_;
    return item;
  }

 private:
  __device__ Barrier Full(int slot) const { return Barrier(barriers_ + slot * 8); }
  __device__ Barrier Empty(int slot) const { return Barrier(barriers_ + (kWorkRing + slot) * 8); }

  WorkItem* items_;
  std::uint32_t barriers_;
  unsigned next_ = 0;
};

}  // namespace expertd::cuda
