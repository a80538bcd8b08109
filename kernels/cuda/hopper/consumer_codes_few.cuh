// Multiplies packed codes for few token rows, each warp its sixteen weight rows, by mma.sync, which gives wgmma's bits.
// Its operands are ordinary registers, so that a warp decodes while it multiplies, and warps wait for nothing but
// stages. For more rows they would read the same token rows from shared memory too often.
#pragma once

#include "kernels/cuda/hopper/codes.cuh"
#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/mma.cuh"

namespace expertd::cuda {

inline constexpr int kFewTokens = 24;

// Token rows of one line, as mma.sync's second operand, for each 16 of K.
template <int kTokens>
class LineRows {
 public:
  LineRows() = default;
  // `lane_at`: LaneAt().
  __device__ LineRows(std::uint32_t rows, std::uint32_t lane_at) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const std::uint32_t at = rows + (lane_at ^ half * 64);
#pragma unroll
      for (int i = 0; i < kTokens / 8; ++i) {
        LoadMatrices4(at + i * 8 * kFusedLine, words_[i][half * 2][0], words_[i][half * 2][1],
                      words_[i][half * 2 + 1][0], words_[i][half * 2 + 1][1]);
      }
    }
  }
  // Where a lane finds its part of the line's first half.
  __device__ static std::uint32_t LaneAt(int lane) { return lane % 8 * kFusedLine + ((lane / 8) ^ (lane % 8)) * 16; }

  template <int kStep, WeightCode kCode>
  __device__ void MultiplyStep(const LineOperand<kCode>& line, float (&sums)[kTokens / 8][4]) const {
    std::uint32_t a[4];
    line.template Step<kStep>(a);
#pragma unroll
    for (int i = 0; i < kTokens / 8; ++i) MultiplyAdd(sums[i], a, words_[i][kStep]);
  }
  template <WeightCode kCode>
  __device__ void Multiply(const LineOperand<kCode>& line, float (&sums)[kTokens / 8][4]) const {
    MultiplyStep<0>(line, sums);
    MultiplyStep<1>(line, sums);
    MultiplyStep<2>(line, sums);
    MultiplyStep<3>(line, sums);
  }

 private:
  std::uint32_t words_[kTokens / 8][4][2];
};

// MultiplyCodes() of consumer_codes.cuh, for kTokens <= kFewTokens.
template <FusedTileId kId, int kTokens>
__device__ void MultiplyCodesOfFew(const FusedShared<kId>& shared, int lines, StageWalk<ShapeOf(kId).stages>& walk,
                                   const Place& place, float (&totals)[kTokens / 2]) {
  constexpr WeightCode kCode = ShapeOf(kId).weights_code;
  constexpr bool kScaled = kCode == WeightCode::kFp8;
  const std::uint32_t lane_at = LineRows<kTokens>::LaneAt(place.lane);
  float sums[kTokens / 8][4] = {};
  const auto multiply = [&]<bool kWhole>() {
    shared.Full(walk.stage()).Wait(walk.parity());
    const StageCodes<kCode> codes(shared.Weights(walk.stage()), place);
    const LineOperand<kCode> first = codes.template Line<0>();
    const LineRows<kTokens> first_rows(shared.Rows(walk.stage()), lane_at);
    // Once loaded, the stage is free.
    const auto release = [&] {
      __syncwarp();
      if (place.lane == 0) shared.Empty(walk.stage()).Arrive();
      walk.Advance();
    };
    if constexpr (kWhole) {
      const LineOperand<kCode> second = codes.template Line<1>();
      const LineRows<kTokens> second_rows(shared.Rows(walk.stage(), 1), lane_at);
      release();
      first_rows.Multiply(first, sums);
      second_rows.Multiply(second, sums);
    } else {
      release();
      first_rows.Multiply(first, sums);
    }
    if constexpr (kScaled) {
#pragma unroll
      for (int i = 0; i < kTokens / 2; ++i) {
        float& sum = sums[i / 4][i % 4];
        totals[i] = fmaf(sum, i % 4 < 2 ? codes.scale().x : codes.scale().y, totals[i]);
        sum = 0.0f;
      }
    }
  };
#pragma unroll 1
  for (int stage = 0; stage < lines / 2; ++stage) multiply.template operator()<true>();
  if (lines % 2 == 1) multiply.template operator()<false>();
  if constexpr (!kScaled) {
#pragma unroll
    for (int i = 0; i < kTokens / 2; ++i) totals[i] = sums[i / 4][i % 4];
    Unscale(totals);
  }
}

}  // namespace expertd::cuda
