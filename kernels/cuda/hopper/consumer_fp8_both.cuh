// Multiplies weights and token rows that are both e4m3, from shared memory.
#pragma once

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/wgmma_shapes.cuh"

namespace expertd::cuda {

// totals += sums * scale of the token row * scale of the weights (.x: of even eights of rows, .y: of odd ones).
template <int kTokens>
__device__ void PromoteRows(std::uint32_t row_scales, float2 weights, const Place& place,
                            const float (&sums)[kTokens / 2], float (&totals)[kTokens / 2]) {
  row_scales += place.lane % 4 * 8;
#pragma unroll
  for (int i = 0; i < kTokens / 8; ++i) {
    const uint2 words = LoadSharedPair(row_scales + i * 32);
    const float2 rows = {__uint_as_float(words.x), __uint_as_float(words.y)};
    totals[4 * i] = fmaf(sums[4 * i], rows.x * weights.x, totals[4 * i]);
    totals[4 * i + 1] = fmaf(sums[4 * i + 1], rows.y * weights.x, totals[4 * i + 1]);
    totals[4 * i + 2] = fmaf(sums[4 * i + 2], rows.x * weights.y, totals[4 * i + 2]);
    totals[4 * i + 3] = fmaf(sums[4 * i + 3], rows.y * weights.y, totals[4 * i + 3]);
  }
}

// totals += weights . rows^T over all of K, 128 at a time in order, whatever kTokens is. Blocks of 64 weight rows take
// turns with one set of sums.
template <FusedTileId kId, int kTokens>
__device__ void MultiplyFp8(const FusedShared<kId>& shared, bool gathered, int steps,
                            StageWalk<ShapeOf(kId).stages>& walk, const Place& place,
                            float (&totals)[ShapeOf(kId).blocks][kTokens / 2]) {
  constexpr FusedTile kTile = ShapeOf(kId);
  constexpr PackedBlock kBlock = {kTile.weights_code};
  float sums[kTokens / 2] = {};
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    shared.Full(walk.stage()).Wait(walk.parity());
    if (gathered) FenceAsync();  // rows came by ordinary copies
    const std::uint64_t rows = Operand(shared.Rows(walk.stage()), 16);
#pragma unroll
    for (int block = 0; block < kTile.blocks; ++block) {
      const int index = block * kTile.groups + place.group;
      const std::uint32_t piece = shared.Weights(walk.stage()) + index / 2 * kTile.piece_bytes();
      const std::uint64_t weights = Operand(piece + index % 2 * 64 * kFusedLine, 16);
      ProductsFence();
      Fp8Product<kTokens>::template Add<false>(sums, weights, rows);
#pragma unroll
      for (int k = 1; k < kPackedK / 32; ++k) {
        Fp8Product<kTokens>::template Add<true>(sums, weights + k * (32 >> 4), rows + k * (32 >> 4));  // 32 bytes on
      }
      CommitProducts();
      const uint2 scales = LoadSharedPair(piece + kBlock.scales_at());
      WaitProducts<0>();
      SumsAreReady(sums);
      PromoteRows<kTokens>(shared.RowScales(walk.stage()), {__uint_as_float(scales.x), __uint_as_float(scales.y)},
                           place, sums, totals[block]);
    }
    __syncwarp();  // all lanes have read their scales
    if (place.lane == 0) shared.Empty(walk.stage()).Arrive();
    walk.Advance();
  }
}

}  // namespace expertd::cuda
