// Multiplies a unit, a stage at a time, and stores what becomes of it.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/hopper/consumer_codes_few.cuh"
#include "kernels/cuda/hopper/stream_units.cuh"

namespace expertd::cuda {

// bf16 weights of a line: 16 lines of 128 bytes, swizzled.
template <>
class LineOperand<WeightCode::kBF16> {
 public:
  LineOperand() = default;
  __device__ LineOperand(std::uint32_t half, int lane) {
    const std::uint32_t at = lane % 16 * kFusedLine + ((lane / 16) ^ (lane % 8)) * 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      LoadMatrices4(half + (at ^ k * 32), words_[k][0], words_[k][1], words_[k][2], words_[k][3]);
    }
  }
  template <int kStep>
  __device__ void Step(std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = words_[kStep][i];
  }

 private:
  std::uint32_t words_[4][4];
};

template <WeightCode kCode, int kTokens, class Known>
class StreamSums {
 public:
  // What a stage holds, to registers; of its second half perhaps what it held before.
  __device__ void Load(std::uint32_t stage) {
    const int lane = threadIdx.x % 32, token = lane % 8 < kTokens ? lane % 8 : kTokens - 1;  // others' columns are lost
    const std::uint32_t lane_at = token * kFusedLine + ((lane / 8) ^ token) * 16;
    const std::uint32_t rows = stage + kShape.rows_at();
    weights_[0] = Line<0>(stage);
    weights_[1] = Line<1>(stage);
    rows_[0] = LineRows<kUnitTokens>(rows, lane_at);
    rows_[1] = LineRows<kUnitTokens>(rows + kTokens * kFusedLine, lane_at);
    if constexpr (kCode == WeightCode::kFp8) scales_ = LoadSharedPair(stage + kShape.scales_at());
  }
  // Of what was loaded, the first half, and with `whole` the other.
  __device__ void Add(bool whole) {
    rows_[0].Multiply(weights_[0], sums_);
    if (whole) rows_[1].Multiply(weights_[1], sums_);
    if constexpr (kCode == WeightCode::kFp8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        totals_[i] = fmaf(sums_[0][i], __uint_as_float(i < 2 ? scales_.x : scales_.y), totals_[i]);
        sums_[0][i] = 0.0f;
      }
    }
  }

  // And begins anew.
  __device__ void Store(const FusedForwardLaunch& launch, const StreamUnit& unit) {
    if constexpr (kCode != WeightCode::kFp8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) totals_[i] = sums_[0][i];
    }
    if constexpr (kCode == WeightCode::kMxfp4) Unscale(totals_);
    if (unit.phase() == Phase::kUp) {
      Known::Select(launch.gate, [&]<Gate kGate>() { StoreUp<kGate>(launch, unit); });
    } else {
      const int feature = unit.column * kUnitWeights;
      StoreEight(launch.slots, launch.d, unit, feature, PackBf16(totals_[0], totals_[1]));
      StoreEight(launch.slots, launch.d, unit, feature + 8, PackBf16(totals_[2], totals_[3]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) totals_[i] = sums_[0][i] = 0.0f;
  }

 private:
  static constexpr StreamShape kShape = {kCode, kTokens};

  template <int kLine>
  __device__ static LineOperand<kCode> Line(std::uint32_t stage) {
    const std::uint32_t half = stage + kLine * UnitHalfBytes(kCode);
    const int lane = threadIdx.x % 32;
    if constexpr (kCode == WeightCode::kBF16) {
      return LineOperand<kCode>(half, lane);
    } else if constexpr (kCode == WeightCode::kFp8) {
      return LineOperand<kCode>(half, lane / 4, lane);
    } else {
      const std::uint32_t scales = stage + kShape.scales_at() + lane / 4 * 4;
      return LineOperand<kCode>(half, lane / 4, lane, Fp4Scales<kLine>(LoadSharedWord(scales)),
                                Fp4Scales<kLine>(LoadSharedWord(scales + 32)));
    }
  }
  template <Gate kGate>
  __device__ void StoreUp(const FusedForwardLaunch& launch, const StreamUnit& unit) const {
    const GateParams params = {kGate, launch.limit, launch.alpha};
    const int first = unit.column * 8;
    float gate_bias = 0.0f, up_bias = 0.0f;
    if (launch.gate_up_bias != nullptr) {
      const float* const bias = launch.gate_up_bias + unit.expert * 2 * launch.f + first + threadIdx.x % 32 / 4;
      gate_bias = bias[0], up_bias = bias[launch.f];
    }
    const auto value = [&](int odd) {
      return Activate<kGate>(totals_[odd] + gate_bias, totals_[2 + odd] + up_bias, params);
    };
    StoreEight(launch.hidden, launch.f, unit, first, PackBf16(value(0), value(1)));
  }
  // Features from `feature` on, of `width`, of each token row: `pair` is of feature lane / 4, tokens 2 (lane % 4) and
  // the next.
  __device__ static void StoreEight(void* to, std::int64_t width, const StreamUnit& unit, int feature,
                                    std::uint32_t pair) {
    const int lane = threadIdx.x % 32, token = lane / 4;
    const std::uint32_t word = TransposeMatrix(pair);
    if (token >= unit.rows()) return;
    static_cast<std::uint32_t*>(to)[((unit.first + token) * width + feature) / 2 + lane % 4] = word;
  }

  LineOperand<kCode> weights_[2];
  LineRows<kUnitTokens> rows_[2];
  uint2 scales_ = {};
  float sums_[1][4] = {}, totals_[4] = {};
};

}  // namespace expertd::cuda
