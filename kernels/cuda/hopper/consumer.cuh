// Multiplies what the stages hold; by two warpgroups. Warpgroup g has blocks of 64 weight rows g, g + 2, ...
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/producer.cuh"
#include "kernels/cuda/hopper/wgmma_shapes.cuh"
#include "kernels/cuda/hopper/work.cuh"

namespace expertd::cuda {

// sums += weights . rows^T over all of K, in steps of 16 in order, whatever kTokens is.
template <FusedTileId kId, int kTokens>
__device__ void MultiplySteps(const FusedShared<kId>& shared, bool gathered, int steps,
                              StageWalk<ShapeOf(kId).stages>& walk, int group,
                              float (&sums)[ShapeOf(kId).blocks][kTokens / 2]) {
  constexpr int kBlocks = ShapeOf(kId).blocks;
  const bool releases = threadIdx.x % 32 == 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    shared.WeightsFull(walk.stage()).Wait(walk.parity());
    shared.RowsFull(walk.stage()).Wait(walk.parity());
    if (gathered) FenceAsync();  // rows came by ordinary copies
    const std::uint32_t weights = shared.Weights(walk.stage()) + group * 64 * kFusedLine;
    const std::uint32_t rows = shared.Rows(walk.stage());
    ProductsFence();
#pragma unroll
    for (int k = 0; k < kFusedStep / 16; ++k) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        WarpgroupProduct<kTokens>::Add(sums[block], Operand(weights + block * 128 * kFusedLine + k * 32, 16),
                                       Operand(rows + k * 32, 16));
      }
    }
    CommitProducts();
    WaitProducts<1>();
    if (step > 0 && releases) shared.Empty(walk.before()).Arrive();
    walk.Advance();
  }
  WaitProducts<0>();
  if (releases) shared.Empty(walk.before()).Arrive();
}

template <FusedTileId kId, Gate kGate, int kTokens>
__device__ void ConsumeTile(const FusedForwardLaunch& launch, const FusedShared<kId>& shared, const WorkItem& item,
                            StageWalk<ShapeOf(kId).stages>& walk, unsigned& rounds) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const Place place;
  const bool up = item.phase == Phase::kUp;
  float sums[kTile.blocks][kTokens / 2] = {};
  MultiplySteps<kId, kTokens>(shared, up && kTile.gathers, StepsOf(launch, item.phase), walk, place.group, sums);

  for (int round = 0; round < RoundsOf<kId>(item.phase); ++round) {
    shared.WeightsFull(walk.stage()).Wait(walk.parity());  // the stage is there for results
    shared.RowsFull(walk.stage()).Wait(walk.parity());
    const std::uint32_t staging = shared.Weights(walk.stage());
#pragma unroll
    for (int block = 0; block < kTile.blocks; ++block) {
      if (up) {
        StageUp<kGate, kTokens>(launch, item, staging, block * 2 + place.group, place, sums[block],
                                item.column * kTile.blocks * 64);
      } else if (block == round) {
        StageDown<kTokens>(staging, place, sums[block]);
      }
    }
    __syncwarp();
    if (place.lane == 0) shared.Staged(rounds).Arrive();
    ++rounds;
    walk.Advance();
  }
}

// Calls ConsumeTile with the narrowest width that holds the tile's rows.
template <FusedTileId kId, Gate kGate, int kTokens, int... kWider>
__device__ void ConsumeNarrowest(const FusedForwardLaunch& launch, const FusedShared<kId>& shared, const WorkItem& item,
                                 StageWalk<ShapeOf(kId).stages>& walk, unsigned& rounds) {
  if constexpr (sizeof...(kWider) > 0) {
    if (item.rows > kTokens) return ConsumeNarrowest<kId, kGate, kWider...>(launch, shared, item, walk, rounds);
  }
  ConsumeTile<kId, kGate, kTokens>(launch, shared, item, walk, rounds);
}

template <FusedTileId kId, Gate kGate>
__device__ void Consume(const FusedForwardLaunch& launch, const FusedShared<kId>& shared, WorkRing<kRingReaders> ring) {
  StageWalk<ShapeOf(kId).stages> walk;
  unsigned rounds = 0;  // of results, so far
  for (;;) {
    const WorkItem item = ring.Pop();
    if (item.phase == Phase::kDone) return;
    if constexpr (kId == FusedTileId::kFew) {
      ConsumeNarrowest<kId, kGate, 8, 16>(launch, shared, item, walk, rounds);
    } else if constexpr (kId == FusedTileId::kSome) {
      ConsumeNarrowest<kId, kGate, 8, 16, 32, 48, 64>(launch, shared, item, walk, rounds);
    } else {
      ConsumeNarrowest<kId, kGate, 32, 64, 80, 96, 112, 128, 144, 160>(launch, shared, item, walk, rounds);
    }
  }
}

}  // namespace expertd::cuda
