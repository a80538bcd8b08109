// Packed codes on their way from a stage to wgmma's first operand, in registers: e4m3 without its scale, e2m1 with it
// and times 2^-64, both exact in bf16 (for which scales: packed_weights.h).
#pragma once

#include <cstdint>

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

// Pair `kPair` of Fp4Place, as bf16 but for the exponent's bias, 2^126.
template <int kPair>
__device__ inline std::uint32_t Fp4Pair(std::uint32_t word) {
  constexpr std::uint32_t kSigns = 0x80008000, kMagnitudes = 0x01c001c0;
  if constexpr (kPair == 0) return word & (kSigns | kMagnitudes);
  if constexpr (kPair == 1) return __funnelshift_r(word, word, 3) & (kSigns | kMagnitudes);
  if constexpr (kPair == 2) return (word >> 6 & kMagnitudes) | (word << 15 & kSigns);
  if constexpr (kPair == 3) return (word << 3 & kMagnitudes) | (word << 14 & kSigns);
}

// Scale `i` of four as bf16, twice.
__device__ inline std::uint32_t E8m0Pair(std::uint32_t scales, int i) {
  return __byte_perm(scales, 0, (i << 12) | (4 << 8) | (i << 4) | 4) >> 1;
}

// What a lane multiplies of 64 of K: codes of weight rows r and r + 8 of its warp's sixteen.
template <WeightCode kCode>
class LineOperand;

template <>
class LineOperand<WeightCode::kFp8> {
 public:
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
  // `scales` of both rows; the half's own are two of each four, from `first_scale` on.
  __device__ LineOperand(std::uint32_t half, int line, int lane, const std::uint32_t (&scales)[2], int first_scale) {
    const std::uint32_t at = half + line * (kPackedLineK / 2) + lane % 4 * 8;
    words_[0] = LoadSharedPair(at);
    words_[1] = LoadSharedPair(at + 8 * (kPackedLineK / 2));
#pragma unroll
    for (int row = 0; row < 2; ++row) {
#pragma unroll
      for (int i = 0; i < 2; ++i) scales_[row][i] = E8m0Pair(scales[row], first_scale + i);
    }
  }
  __device__ void Pin() {
#pragma unroll
    for (uint2& words : words_) asm volatile("" : "+r"(words.x), "+r"(words.y)::"memory");
  }
  template <int kStep>
  __device__ void Step(std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      const std::uint32_t word = kStep < 2 ? words_[row].x : words_[row].y, scale = scales_[row][kStep / 2];
      a[row] = TimesBf16(Fp4Pair<kStep % 2 * 2>(word), scale);
      a[row + 2] = TimesBf16(Fp4Pair<kStep % 2 * 2 + 1>(word), scale);
    }
  }

 private:
  uint2 words_[2];
  std::uint32_t scales_[2][2];
};

}  // namespace expertd::cuda
