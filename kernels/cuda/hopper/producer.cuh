// Fills the stages: one thread brings weights, two warps bring token rows.
//
// The first product gathers its rows, 16 bytes a copy, from where they lie (TMA has no gather on this chip); for tiles
// of many rows, which it would hold up, they were brought beside each other before. Those, and the second product's,
// come as boxes. A box may reach into the next expert's rows, and lines past the tile's rows may hold what an earlier
// tile left: neither matters, because a column of the product depends on its own token row alone and columns past the
// tile's rows are not stored.
#pragma once

#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/work.cuh"

namespace expertd::cuda {

struct FusedMaps {
  CUtensorMap gate_up;  // [experts, f / 8, half, 8, d]: eight gate rows, then the eight up rows that belong to them
  CUtensorMap down;     // [experts, d, f]
  CUtensorMap hidden;   // [1, positions, f]
  CUtensorMap rows;     // [1, positions, d]: sorted_rows
};
inline constexpr int kHiddenBox = 16;  // lines that one copy of `hidden` brings

// Waits for the first product of a token tile, whose results the second one copies.
inline __device__ void AwaitUp(const Counters& counters, int token_tile, int tiles) {
  while (LoadAcquire(counters.up_done(token_tile)) < tiles) {
  }
  FenceAsyncGlobal();
}
// A step of a tile's weights.
template <FusedTileId kId>
__device__ void WeightsStep(const FusedMaps& maps, const FusedShared<kId>& shared, const WorkItem& item, int stage,
                            int step) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const Barrier full = shared.WeightsFull(stage);
  full.ArriveAndExpect(kTile.weight_bytes());
  for (int block = 0; block < kTile.blocks; ++block) {
    const std::uint32_t to = shared.Weights(stage) + block * 128 * kFusedLine;
    const int row = (item.column * kTile.blocks + block) * 128;
    if (item.phase == Phase::kUp) {
      CopyBox(to, maps.gate_up, step * kFusedStep, 0, 0, row / 16, item.expert, full);
    } else {
      CopyBox(to, maps.down, step * kFusedStep, row, item.expert, full);
    }
  }
}

// Draws tickets, tells the block, and brings the weights of its tiles; by one thread.
template <FusedTileId kId>
__device__ void BringWeights(const FusedForwardLaunch& launch, const FusedMaps& maps, const FusedShared<kId>& shared,
                             const Work& work, WorkRing<kRingReaders> ring) {
  const Counters counters = {launch.counters};
  StageWalk<ShapeOf(kId).stages> walk;
  int ticket = atomicAdd(counters.ticket(), 1);
  for (;;) {
    const WorkItem item = work.At(ticket);
    ring.Push(item);
    if (item.phase == Phase::kDone) return;
    ticket = atomicAdd(counters.ticket(), 1);  // its way to memory and back overlaps this item's copies
    const int steps = StepsOf(launch, item.phase);
    for (int step = 0; step < steps; ++step) {
      shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
      WeightsStep(maps, shared, item, walk.stage(), step);
      walk.Advance();
    }
    for (int round = 0; round < RoundsOf<kId>(item.phase); ++round) {  // stages for results
      shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
      shared.WeightsFull(walk.stage()).Arrive();
      walk.Advance();
    }
  }
}

// The rows of a tile that one thread brings, 16 bytes of each in a step: every eighth row, and every eighth chunk.
template <FusedTileId kId>
class GatheredRows {
 public:
  __device__ explicit GatheredRows(int thread) : first_(thread / 8), chunk_(thread % 8) {}

  __device__ void Find(const FusedForwardLaunch& launch, const WorkItem& item) {
    rows_ = item.rows;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (Row(i) >= rows_) continue;
      const unsigned slot = launch.sorted_slots[item.first + Row(i)], row = slot / unsigned(launch.rows_divisor);
      const std::uint64_t address = launch.row_addresses != nullptr
                                        ? launch.row_addresses[row]
                                        : reinterpret_cast<std::uint64_t>(launch.rows) + row * launch.d * 2;
      from_[i] = reinterpret_cast<const unsigned char*>(address) + chunk_ * 16;
    }
  }
  // The next step's bytes to the stage's rows at `to`.
  __device__ void CopyStep(std::uint32_t to) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (Row(i) < rows_) CopyChunk(to + Row(i) * kFusedLine + (chunk_ ^ first_) * 16, from_[i]);
      from_[i] += kFusedLine;
    }
  }

 private:
  static constexpr int kStride = kRowsThreads / 8, kRows = ShapeOf(kId).tokens / kStride;
  static_assert(kStride == 8);  // so that all of a thread's rows have one swizzle
  __device__ int Row(int i) const { return first_ + i * kStride; }

  const int first_, chunk_;
  int rows_ = 0;
  const unsigned char* from_[kRows];
};

// A step of the rows that the first product left beside each other.
template <FusedTileId kId>
__device__ void BoxesStep(const CUtensorMap& map, const FusedShared<kId>& shared, const WorkItem& item, int stage,
                          int step, int thread) {
  const Barrier full = shared.RowsFull(stage);
  if (thread != 0) return full.Arrive();
  const int boxes = (item.rows + kHiddenBox - 1) / kHiddenBox;
  full.ArriveAndExpect(boxes * kHiddenBox * kFusedLine);
  for (int box = 0; box < boxes; ++box) {
    CopyBox(shared.Rows(stage) + box * kHiddenBox * kFusedLine, map, step * kFusedStep, item.first + box * kHiddenBox,
            0, full);
  }
}

template <FusedTileId kId>
__device__ void BringRows(const FusedForwardLaunch& launch, const FusedMaps& maps, const FusedShared<kId>& shared,
                          const Work& work, WorkRing<kRingReaders> ring) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const Counters counters = {launch.counters};
  const int thread = threadIdx.x - kRowsWarp * 32;
  StageWalk<kTile.stages> walk;
  GatheredRows<kId> gathered(thread);
  for (;;) {
    const WorkItem item = ring.Pop();
    if (item.phase == Phase::kDone) return;
    const int steps = StepsOf(launch, item.phase);
    const bool up = item.phase == Phase::kUp;
    const bool gathers = up && kTile.gathers;
    if (gathers) {
      gathered.Find(launch, item);
    } else if (!up && thread == 0) {
      AwaitUp(counters, item.token_tile, work.up_tiles());
    }
    for (int step = 0; step < steps; ++step) {
      shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
      if (gathers) {
        gathered.CopyStep(shared.Rows(walk.stage()));
        ArriveWhenCopied(shared.RowsFull(walk.stage()));
      } else {
        BoxesStep(up ? maps.rows : maps.hidden, shared, item, walk.stage(), step, thread);
      }
      walk.Advance();
    }
    for (int round = 0; round < RoundsOf<kId>(item.phase); ++round) {
      shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
      shared.RowsFull(walk.stage()).Arrive();
      walk.Advance();
    }
  }
}

}  // namespace expertd::cuda
