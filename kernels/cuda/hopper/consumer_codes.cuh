// Multiplies packed codes, decoded in registers on their way to wgmma; by two or four warpgroups, 64 weight rows
// each. While
// the tensor cores multiply one line of K, the next one is decoded.
#pragma once

#include "kernels/cuda/hopper/codes.cuh"
#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/wgmma_shapes.cuh"

namespace expertd::cuda {

// sums += line . rows^T over 64 of K; with kFresh, sums = that.
//
// Waits for the products before: ptxas (13.0) gives the decoded operand of one line the registers of the line before,
// whose products may not have read them yet. Other warpgroups decode meanwhile.
template <bool kFresh, int kTokens, WeightCode kCode>
__device__ void MultiplyLine(LineOperand<kCode> line, std::uint32_t rows, float (&sums)[kTokens / 2]) {
  CommitProducts();
  WaitProducts<0>();
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
}

// A stage of e2m1: its scales are powers of two of single rows, and go into the codes.
template <FusedTileId kId, int kTokens>
__device__ void MultiplyFp4Stage(const FusedShared<kId>& shared, int stage, int lines, const Place& place,
                                 float (&sums)[kTokens / 2]) {
  constexpr PackedBlock kBlock = {WeightCode::kMxfp4};
  const std::uint32_t block = shared.Weights(stage) + place.group / 2 * kBlock.bytes();
  const int row = place.group % 2 * 64 + place.row();
  const std::uint32_t scales[2] = {LoadSharedWord(block + row * 4), LoadSharedWord(block + (row + 8) * 4)};
#pragma unroll
  for (int line = 0; line < 2; ++line) {
    if (line == lines) break;
    const LineOperand<WeightCode::kMxfp4> operand(block + kBlock.scale_bytes() + line * kBlock.half_bytes(), row,
                                                  place.lane, scales, line * 2);
    MultiplyLine<false, kTokens>(operand, shared.Rows(stage, line), sums);
  }
}

// A stage of e4m3, without its scales, which do not fit bf16.
template <FusedTileId kId, int kTokens>
__device__ void MultiplyFp8Stage(const FusedShared<kId>& shared, int stage, int lines, const Place& place,
                                 float (&sums)[kTokens / 2]) {
  constexpr PackedBlock kBlock = {WeightCode::kFp8};
  const std::uint32_t first = shared.Weights(stage) + place.group / 2 * kBlock.bytes() + kBlock.scale_bytes();
  const int row = place.group % 2 * 64 + place.row();
  MultiplyLine<true, kTokens>(LineOperand<WeightCode::kFp8>(first, row, place.lane), shared.Rows(stage), sums);
  if (lines == 1) return;
  MultiplyLine<false, kTokens>(LineOperand<WeightCode::kFp8>(first + kBlock.half_bytes(), row, place.lane),
                               shared.Rows(stage, 1), sums);
}

// The sums of one stage, which has been waited for, scaled, into the totals: scale.x is of a thread's first row,
// scale.y of the other.
template <int kTokens>
__device__ void Promote(const float2& scale, float (&sums)[kTokens / 2], float (&totals)[kTokens / 2]) {
  SumsAreReady(sums);
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    totals[i] = fmaf(sums[i], i % 4 < 2 ? scale.x : scale.y, totals[i]);
  }
}

// totals += weights . rows^T over `lines` x 64 of K, in one order, whatever kTokens is.
template <FusedTileId kId, int kTokens>
__device__ void MultiplyCodes(const FusedShared<kId>& shared, bool gathered, int lines,
                              StageWalk<ShapeOf(kId).stages>& walk, const Place& place, float (&totals)[kTokens / 2]) {
  constexpr bool kScaled = ShapeOf(kId).weights_code == WeightCode::kFp8;
  // Sums of e4m3 take turns where registers allow it, so that one is scaled while the other grows.
  constexpr int kTurns = kScaled && kTokens > 64 ? 1 : 2;
  const bool releases = place.lane == 0;
  [[maybe_unused]] float sums[kScaled ? kTurns : 1][kTokens / 2] = {};
  [[maybe_unused]] float2 scale[kTurns];
#pragma unroll 1
  for (int first = 0; first < lines; first += 2 * kTurns) {
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
      const int line = first + turn * 2;
      if (line >= lines) break;
      shared.WeightsFull(walk.stage()).Wait(walk.parity());
      shared.RowsFull(walk.stage()).Wait(walk.parity());
      if (gathered) FenceAsync();  // rows came by ordinary copies
      const int here = min(2, lines - line);
      if constexpr (kScaled) {
        constexpr PackedBlock kBlock = {WeightCode::kFp8};
        const uint2 words = LoadSharedPair(shared.Weights(walk.stage()) + place.group / 2 * kBlock.bytes());
        scale[turn] = make_float2(__uint_as_float(words.x), __uint_as_float(words.y));
        MultiplyFp8Stage<kId, kTokens>(shared, walk.stage(), here, place, sums[turn]);
      } else {
        MultiplyFp4Stage<kId, kTokens>(shared, walk.stage(), here, place, totals);
      }
      CommitProducts();
      WaitProducts<kTurns - 1>();
      const int done = kTurns == 1 ? walk.stage() : walk.before();
      if (kTurns == 1 || line > 0) {
        if (releases) shared.Empty(done).Arrive();
        if constexpr (kScaled) Promote<kTokens>(scale[(turn + 1) % kTurns], sums[(turn + 1) % kTurns], totals);
      }
      walk.Advance();
    }
  }
  if constexpr (kTurns == 1) return;
  WaitProducts<0>();
  if (releases) shared.Empty(walk.before()).Arrive();
  if constexpr (!kScaled) {
    SumsAreReady(totals);
#pragma unroll
    for (float& total : totals) total *= 18446744073709551616.0f;  // 2^64, which codes were scaled down by
  }
  if constexpr (kScaled) {
    if ((lines + 1) / 2 % 2 == 1) {
      Promote<kTokens>(scale[0], sums[0], totals);
    } else {
      Promote<kTokens>(scale[1], sums[1], totals);
    }
  }
}

}  // namespace expertd::cuda
