// Multiplies packed codes, decoded in registers on their way to wgmma; by two or four warpgroups, 64 weight rows each.
#pragma once

#include "kernels/cuda/hopper/codes.cuh"
#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/wgmma_shapes.cuh"

namespace expertd::cuda {

// sums += line . rows^T over 64 of K; with kFresh, sums = that.
//
// Products before must be done: ptxas (13.0) gives the decoded operand of one line the registers of the line before,
// whose products may not have read them yet. Other warpgroups decode meanwhile.
template <bool kFresh, int kTokens, WeightCode kCode>
__device__ void MultiplyLine(LineOperand<kCode>& line, std::uint32_t rows, float (&sums)[kTokens / 2]) {
  line.Pin();
  std::uint32_t a[4][4];
  line.template Step<0>(a[0]);
  line.template Step<1>(a[1]);
  line.template Step<2>(a[2]);
  line.template Step<3>(a[3]);
  ProductsFence();
  const std::uint64_t operand = Operand(rows, 16);
  WarpgroupProduct<kTokens>::template Add<!kFresh>(sums, a[0], operand);
#pragma unroll
  for (int k = 1; k < kFusedLineK / 16; ++k) {
    WarpgroupProduct<kTokens>::template Add<true>(sums, a[k], operand + k * (32 >> 4));  // 32 bytes on
  }
  CommitProducts();
}

// totals += weights . rows^T over `lines` x 64 of K, in one order, whatever kTokens is.
template <FusedTileId kId, int kTokens>
__device__ void MultiplyCodes(const FusedShared<kId>& shared, bool gathered, int lines,
                              StageWalk<ShapeOf(kId).stages>& walk, const Place& place, float (&totals)[kTokens / 2]) {
  constexpr WeightCode kCode = ShapeOf(kId).weights_code;
  constexpr bool kScaled = kCode == WeightCode::kFp8;
  float2 scale = {};
  [[maybe_unused]] float of_stage[kTokens / 2] = {};
  float(&sums)[kTokens / 2] = kScaled ? of_stage : totals;
  // What follows a stage's products, which ran while the next stage was waited for.
  const auto finish = [&](bool any) {
    WaitProducts<0>();
    if (any && place.lane == 0) shared.Empty(walk.before()).Arrive();
    if constexpr (kScaled) {
      SumsAreReady(sums);
      Promote(scale, of_stage, totals);
    }
  };
#pragma unroll 1
  for (int line = 0; line < lines; line += 2) {
    shared.Full(walk.stage()).Wait(walk.parity());
    if (gathered) FenceAsync();  // rows came by ordinary copies
    const StageCodes<kCode> codes(shared.Weights(walk.stage()), place);
    LineOperand<kCode> first = codes.template Line<0>();
    finish(line > 0);
    scale = codes.scale();
    MultiplyLine<kScaled, kTokens>(first, shared.Rows(walk.stage()), sums);
    if (line + 1 < lines) {
      LineOperand<kCode> second = codes.template Line<1>();
      WaitProducts<0>();
      MultiplyLine<false, kTokens>(second, shared.Rows(walk.stage(), 1), sums);
    }
    walk.Advance();
  }
  finish(true);
  if constexpr (!kScaled) {
    SumsAreReady(totals);
    Unscale(totals);
  }
}

}  // namespace expertd::cuda
