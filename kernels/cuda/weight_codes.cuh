// Quantised weights as numbers: OCP e4m3, e2m1 and e8m0, NaN included.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

#include "kernels/cuda/elements.cuh"

namespace expertd::cuda {

__device__ inline float Fp8ToFloat(std::uint8_t code) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(code, __NV_E4M3)));
}

// 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives: two bits of exponent and one of mantissa, put where f32 has them, are
// right but for the exponent's bias, 2^126; so is the subnormal .5.
__device__ inline float Fp4ToFloat(unsigned code) {
  return __uint_as_float((code & 8) << 28 | (code & 7) << 22) * 8.507059173023462e37f;
}

// 2^(code - 127); 255 is NaN.
__device__ inline float E8m0ToFloat(std::uint8_t code) {
  return __uint_as_float(code == 255 ? 0x7fc00000u : code == 0 ? 0x00400000u : unsigned{code} << 23);
}

// Eight codes as bf16, exactly: e4m3 without its scale (which has 24 bits), e2m1 with it.
__device__ inline uint4 Fp8ToBf16(uint2 codes) {
  const auto pair = [](unsigned word, int i) {
    return PackBf16(Fp8ToFloat(static_cast<std::uint8_t>(word >> 16 * i)),
                    Fp8ToFloat(static_cast<std::uint8_t>(word >> (16 * i + 8))));
  };
  return make_uint4(pair(codes.x, 0), pair(codes.x, 1), pair(codes.y, 0), pair(codes.y, 1));
}
__device__ inline uint4 Fp4ToBf16(unsigned codes, std::uint8_t scale) {
  const float factor = E8m0ToFloat(scale);
  const auto pair = [&](int i) {
    return PackBf16(Fp4ToFloat(codes >> 8 * i & 15) * factor, Fp4ToFloat(codes >> (8 * i + 4) & 15) * factor);
  };
  return make_uint4(pair(0), pair(1), pair(2), pair(3));
}

}  // namespace expertd::cuda
