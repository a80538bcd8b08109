// Packed codes on their way from a stage to wgmma's first operand, in registers: e4m3 without its scale, e2m1 with it
// and times 2^-64, both exact in bf16 (for which scales: packed_weights.h).
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/packed_weights.h"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

// Both halves, times a power of two.
__device__ inline std::uint32_t TimesBf16(std::uint32_t pair, std::uint32_t factor) {
  std::uint32_t product;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(product) : "r"(pair), "r"(factor));
  return product;
}

// Bytes 0 and 2, or 1 and 3, as bf16. Exponent and mantissa put where bf16 has them are right but for the exponent's
// bias, 2^120, subnormals included. NaN codes are not: whoever packs makes their block's scale NaN.
template <bool kOdd>
__device__ inline std::uint32_t Fp8Pair(std::uint32_t word) {
  constexpr std::uint32_t kBias = 0x7b807b80;
  const std::uint32_t magnitude = (kOdd ? word >> 4 : word << 4) & 0x07f007f0;
  const std::uint32_t sign = (kOdd ? word : word << 8) & 0x80008000;
  return TimesBf16(magnitude | sign, kBias);
}

// The first word's bits where `mask` has ones, else the second's: spelled out, or the compiler makes two of it.
__device__ inline std::uint32_t Select(std::uint32_t mask, std::uint32_t first, std::uint32_t second) {
  std::uint32_t word;
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(word) : "r"(mask), "r"(first), "r"(second));
  return word;
}

// Of the 16 of K number kStep, elements 2 c and 2 c + 1 of lane c, or with kHigh those 8 further on, as bf16 but for
// the exponent's bias, 2^126. `words` are the lane's; the places are Fp4Place's.
template <int kStep, bool kHigh>
__device__ inline std::uint32_t Fp4Pair(const uint2& words) {
  constexpr std::uint32_t kCode = 0x81c081c0, kOfFirst = 0x06030603;
  const std::uint32_t word = kStep < 2 ? words.x : words.y;
  const std::uint32_t shared = Select(kOfFirst, words.x, words.y << 2);
  if constexpr (kStep % 2 == 0) return (kHigh ? __funnelshift_r(word, word, 6) : word) & kCode;
  if constexpr (!kHigh) return word << 4 & kCode;
  return (kStep == 1 ? __funnelshift_r(shared, shared, 4) : shared << 6) & kCode;
}

// A row's scales of line kLine as bf16, from its four: of the first 32 of K and of the others.
template <int kLine>
__device__ inline std::uint32_t Fp4Scales(std::uint32_t scales) {
  return (kLine == 0 ? scales << 7 : scales >> 1) & 0x7f807f80;
}

// One half of a pair, twice; costs nothing, because a product can name a half.
template <int kHalf>
__device__ inline std::uint32_t Twice(std::uint32_t pair) {
  std::uint32_t both;
  if constexpr (kHalf == 0) {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {low, low};\n}" : "=r"(both) : "r"(pair));
  } else {
    asm("{\n.reg .b16 low, high;\nmov.b32 {low, high}, %1;\nmov.b32 %0, {high, high};\n}" : "=r"(both) : "r"(pair));
  }
  return both;
}

// What a lane multiplies of 64 of K: codes of weight rows r and r + 8 of its warp's sixteen.
template <WeightCode kCode>
class LineOperand;

template <>
class LineOperand<WeightCode::kFp8> {
 public:
  LineOperand() = default;
  // `half` is the half's first line; `line` the lane's first row in it.
  __device__ LineOperand(std::uint32_t half, int line, int lane) {
    const std::uint32_t at = half + line * kPackedLineK + lane % 4 * 16;
    words_[0] = LoadShared(at);
    words_[1] = LoadShared(at + 8 * kPackedLineK);
  }
  // Loaded before a wait, used after it: see MultiplyLine.
  __device__ void Pin() {
#pragma unroll
    for (uint4& words : words_) {
      asm volatile("" : "+r"(words.x), "+r"(words.y), "+r"(words.z), "+r"(words.w)::"memory");
    }
  }
  // For the 16 of K number kStep.
  template <int kStep>
  __device__ void Step(std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const std::uint32_t word = Word<kStep>(words_[row]);
      a[row] = Fp8Pair<false>(word);
      a[row + 2] = Fp8Pair<true>(word);
    }
  }

 private:
  template <int kStep>
  __device__ static std::uint32_t Word(const uint4& words) {
    return kStep == 0 ? words.x : kStep == 1 ? words.y : kStep == 2 ? words.z : words.w;
  }
  uint4 words_[2];
};

template <>
class LineOperand<WeightCode::kMxfp4> {
 public:
  LineOperand() = default;
  // `scales` of both rows, from Fp4Scales.
  __device__ LineOperand(std::uint32_t half, int line, int lane, std::uint32_t scales, std::uint32_t scales_of_second)
      : scales_{scales, scales_of_second} {
    const std::uint32_t at = half + line * (kPackedLineK / 2) + lane % 4 * 8;
    words_[0] = LoadSharedPair(at);
    words_[1] = LoadSharedPair(at + 8 * (kPackedLineK / 2));
  }
  __device__ void Pin() {
#pragma unroll
    for (uint2& words : words_) asm volatile("" : "+r"(words.x), "+r"(words.y)::"memory");
  }
  template <int kStep>
  __device__ void Step(std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const std::uint32_t scale = Twice<kStep / 2>(scales_[row]);
      a[row] = TimesBf16(Fp4Pair<kStep, false>(words_[row]), scale);
      a[row + 2] = TimesBf16(Fp4Pair<kStep, true>(words_[row]), scale);
    }
  }

 private:
  uint2 words_[2];
  std::uint32_t scales_[2];
};

// A stage's packed blocks as one thread multiplies them; `weights` is where they begin.
template <WeightCode kCode>
class StageCodes {
 public:
  __device__ StageCodes(std::uint32_t weights, const Place& place)
      : block_(weights + place.group / 2 * kBlock.bytes()),
        row_(place.group % 2 * 64 + place.row()),
        lane_(place.lane) {
    if constexpr (kCode == WeightCode::kFp8) {
      const uint2 scales = LoadSharedPair(block_);
      scales_[0] = scales.x, scales_[1] = scales.y;
    } else {
      scales_[0] = LoadSharedWord(block_ + row_ * 4), scales_[1] = LoadSharedWord(block_ + (row_ + 8) * 4);
    }
  }
  // Of e4m3: of the thread's first row, and of the other.
  __device__ float2 scale() const { return make_float2(__uint_as_float(scales_[0]), __uint_as_float(scales_[1])); }
  template <int kLine>
  __device__ LineOperand<kCode> Line() const {
    const std::uint32_t half = block_ + kBlock.scale_bytes() + kLine * kBlock.half_bytes();
    if constexpr (kCode == WeightCode::kFp8) {
      return LineOperand<kCode>(half, row_, lane_);
    } else {
      return LineOperand<kCode>(half, row_, lane_, Fp4Scales<kLine>(scales_[0]), Fp4Scales<kLine>(scales_[1]));
    }
  }

 private:
  static constexpr PackedBlock kBlock = {kCode};
  std::uint32_t block_;
  int row_, lane_;
  std::uint32_t scales_[2];
};

// e2m1 were scaled down by 2^64.
template <int kCount>
__device__ void Unscale(float (&sums)[kCount]) {
#pragma unroll
  for (float& sum : sums) sum *= 18446744073709551616.0f;
}
// Sums of e4m3 over 128 of K, scaled, into the totals: scale.x is of a thread's first row, scale.y of the other.
template <int kCount>
__device__ void Promote(const float2& scale, const float (&sums)[kCount], float (&totals)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) totals[i] = fmaf(sums[i], i % 4 < 2 ? scale.x : scale.y, totals[i]);
}

}  // namespace expertd::cuda
