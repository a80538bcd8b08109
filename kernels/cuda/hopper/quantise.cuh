// bf16 to e4m3, on the device.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/fp8_rows.h"

namespace expertd::cuda {

inline constexpr int kQuantisingLanes = kPackedK / 8;  // of a line, eight elements each

struct Fp8Eight {
  uint2 codes;
  float scale;  // of the whole line
};

// Two elements of bf16, times `inverse`, as codes.
__device__ inline std::uint16_t QuantisePair(std::uint32_t pair, float inverse) {
  std::uint16_t codes = 0;
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;"
      : "=h"(codes)
      : "f"(__uint_as_float(pair & 0xffff0000u) * inverse), "f"(__uint_as_float(pair << 16) * inverse));
#endif
  return codes;
}

// Eight elements of a line; by whole warps, whose lanes hold two lines.
__device__ inline Fp8Eight QuantiseEight(uint4 values) {
  constexpr std::uint32_t kMagnitudes = 0x7fff7fff;
  const std::uint32_t both = __vmaxu2(__vmaxu2(values.x & kMagnitudes, values.y & kMagnitudes),
                                      __vmaxu2(values.z & kMagnitudes, values.w & kMagnitudes));
  std::uint32_t most = max(both & 0xffffu, both >> 16);
#pragma unroll
  for (int step = 1; step < kQuantisingLanes; step *= 2) most = max(most, __shfl_xor_sync(0xffffffffu, most, step));
  const Fp8Scale scale = ScaleOfMost(most);
  const auto four = [inverse = __uint_as_float(scale.inverse)](std::uint32_t low, std::uint32_t high) {
    return QuantisePair(low, inverse) | std::uint32_t{QuantisePair(high, inverse)} << 16;
  };
  return {make_uint2(four(values.x, values.y), four(values.z, values.w)), __uint_as_float(scale.scale)};
}

}  // namespace expertd::cuda
