// Quantised weights as numbers: OCP e4m3, e2m1 and e8m0, NaN included.
#pragma once

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <cstdint>

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

}  // namespace expertd::cuda
