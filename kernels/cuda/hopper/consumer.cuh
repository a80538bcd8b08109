// Multiplies what the stages hold; by two warpgroups. Warpgroup g has blocks of 64 weight rows g, g + 2, ...
#pragma once

#include "kernels/cuda/hopper/consumer_codes.cuh"
#include "kernels/cuda/hopper/consumer_codes_few.cuh"
#include "kernels/cuda/hopper/consumer_fp8_both.cuh"
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
  constexpr int kBlocks = ShapeOf(kId).blocks, kBlockBytes = ShapeOf(kId).block_weights() * kFusedLine;
  const bool releases = threadIdx.x % 32 == 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    shared.Full(walk.stage()).Wait(walk.parity());
    if (gathered) FenceAsync();  // rows came by ordinary copies
    const std::uint32_t weights = shared.Weights(walk.stage()) + group * 64 * kFusedLine;
    const std::uint32_t rows = shared.Rows(walk.stage());
    ProductsFence();
#pragma unroll
    for (int k = 0; k < kFusedLineK / 16; ++k) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        WarpgroupProduct<kTokens>::Add(sums[block], Operand(weights + block * kBlockBytes + k * 32, 16),
                                       Operand(rows + k * 32, 16));
      }
    }
    CommitProducts();
    WaitProducts<1>();
    if (step > 0 && releases) shared.Empty(walk.before()).Arrive();
    walk.Advance();
  }
  WaitProducts<0>();
#pragma unroll
  for (int block = 0; block < kBlocks; ++block) SumsAreReady(sums[block]);
  if (releases) shared.Empty(walk.before()).Arrive();
}

// The activations that a kernel knows.
template <Gate... kGates>
struct Gates {
  // stage.operator()<gate>()
  template <typename Stage>
  __device__ static void Select(Gate gate, const Stage& stage) {
    if constexpr (sizeof...(kGates) == 1) {
      (stage.template operator()<kGates>(), ...);
    } else {
      (void)((gate == kGates && (stage.template operator()<kGates>(), true)) || ...);
    }
  }
};

template <FusedTileId kId, class Known, int kTokens>
__device__ __forceinline__ void ConsumeTile(const FusedForwardLaunch& launch, const FusedShared<kId>& shared,
                                            const WorkItem& item, StageWalk<ShapeOf(kId).stages>& walk,
                                            unsigned& stored) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const Place place;
  const bool up = item.phase == Phase::kUp;
  float sums[kTile.blocks][kTokens / 2] = {};
  if constexpr (kTile.fp8_rows()) {
    MultiplyFp8<kId, kTokens>(shared, launch.gathers(up), StepsOf<kId>(launch, item.phase), walk, place, sums);
  } else if constexpr (kTile.decodes() && kTokens <= kFewTokens) {
    MultiplyCodesOfFew<kId, kTokens>(shared, LinesOf<kId>(launch, item.phase), walk, place, sums[0]);
  } else if constexpr (kTile.decodes()) {
    MultiplyCodes<kId, kTokens>(shared, launch.gathers(up), LinesOf<kId>(launch, item.phase), walk, place, sums[0]);
  } else {
    MultiplySteps<kId, kTokens>(shared, launch.gathers(up), StepsOf<kId>(launch, item.phase), walk, place.group, sums);
  }

  if (up) {
    Known::Select(launch.gate, [&]<Gate kGate>() {
      const UpResults<kId, kGate, kTokens> results(launch, item, place, sums);
      if constexpr (ShapeOf(kId).fp8_rows()) {
        QuantiseUp<kId, kGate, kTokens>(launch, shared, item, place, results);
      } else {
        StoreUp<kId, kGate, kTokens>(launch, shared, item, place, results);
      }
    });
  } else {
    StoreDown<kId, kTokens>(launch, shared, item, place, sums);
  }
  // Orders lanes' stores before the news; and without it the compiler takes lanes for apart in the next tile, and gives
  // up uniform registers.
  __syncwarp();
  if (!up) return;
  if (place.lane == 0) shared.Stored(stored).Arrive();
  ++stored;
}

// Calls ConsumeTile with the narrowest width that holds the tile's rows.
template <FusedTileId kId, class Known, int kTokens, int... kWider>
__device__ __forceinline__ void ConsumeNarrowest(const FusedForwardLaunch& launch, const FusedShared<kId>& shared,
                                                 const WorkItem& item, StageWalk<ShapeOf(kId).stages>& walk,
                                                 unsigned& stored) {
  if constexpr (sizeof...(kWider) > 0) {
    if (item.rows > kTokens) return ConsumeNarrowest<kId, Known, kWider...>(launch, shared, item, walk, stored);
  }
  ConsumeTile<kId, Known, kTokens>(launch, shared, item, walk, stored);
}

template <FusedTileId kId, class Known>
__device__ __forceinline__ void Consume(const FusedForwardLaunch& launch, const FusedShared<kId>& shared,
                                        WorkRing<kRingReaders<kId>> ring) {
  StageWalk<ShapeOf(kId).stages> walk;
  unsigned stored = 0;  // tiles of the first product, so far
  for (;;) {
    const WorkItem item = ring.Pop();
    if (item.phase == Phase::kDone) return;
    constexpr int kTokens = ShapeOf(kId).tokens;
    // Codes: with more widths that take wgmma ptxas spills, or gives up overlapping products.
    if constexpr (ShapeOf(kId).decodes() && kTokens == 128) {
      ConsumeNarrowest<kId, Known, 64, 128>(launch, shared, item, walk, stored);
    } else if constexpr (ShapeOf(kId).decodes() && kTokens == 64) {
      ConsumeNarrowest<kId, Known, 8, 16, 24, 32, 64>(launch, shared, item, walk, stored);
    } else if constexpr (ShapeOf(kId).fp8_rows() && kTokens == 128) {
      ConsumeNarrowest<kId, Known, 64, 80, 96, 112, 128>(launch, shared, item, walk, stored);
    } else if constexpr (kTokens == 16) {
      ConsumeNarrowest<kId, Known, 8, 16>(launch, shared, item, walk, stored);
    } else if constexpr (kTokens == 64) {
      ConsumeNarrowest<kId, Known, 8, 16, 32, 48, 64>(launch, shared, item, walk, stored);
    } else {
      ConsumeNarrowest<kId, Known, 32, 64, 80, 96, 112, 128, 144, 160>(launch, shared, item, walk, stored);
    }
  }
}

}  // namespace expertd::cuda
