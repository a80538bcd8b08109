// Vectors of 8 for the kernel templates: AVX2, FMA, F16C. Only for kernels_avx2.cc; see simd_avx512.h for the twin.
//
// In an unnamed namespace on purpose: every template over these types is then local to its file, and code for one
// processor cannot be merged with code for another.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/panel_layout.h"

namespace expertd::cpu {
namespace {

struct Avx2 {
  using F = __m256;
  using I = __m256i;
  static constexpr int kLanes = 8;
  static constexpr int kRowTile = 4;       // 4 rows x 16 outputs: 8 of 16 registers
  static constexpr int kUnitsAtATime = 1;  // of a panel's 4

  static F Set1(float x) { return _mm256_set1_ps(x); }
  static F Load(const float* p) { return _mm256_loadu_ps(p); }
  static void Store(float* p, F x) { _mm256_storeu_ps(p, x); }
  static F Fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
  static F Add(F a, F b) { return _mm256_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm256_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm256_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm256_div_ps(a, b); }
  static F Min(F a, F b) { return _mm256_min_ps(a, b); }  // b where either is NaN
  static F Max(F a, F b) { return _mm256_max_ps(a, b); }  // b where either is NaN
  static F Abs(F x) { return _mm256_andnot_ps(Set1(-0.0f), x); }
  static F Round(F x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F PowerOfTwo(F n) {  // of whole n in [-126, 127]
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
  }

  static F LoadBf16(const std::uint16_t* p) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
  }
  static void StoreBf16(std::uint16_t* p, F x) {  // to nearest even, NaN stays NaN
    const I bits = _mm256_castps_si256(x);
    const I odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const I rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const I quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const I nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    const I high = _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
    const I packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(high, high), 0x08);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
  }

  // The weights of unit `unit`, outputs [8 part, 8 part + 8), of one row of codes: pairs of bf16 ...
  static F Even(I pairs) { return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16)); }
  static F Odd(I pairs) { return _mm256_castsi256_ps(_mm256_and_si256(pairs, _mm256_set1_epi32(~0xffff))); }
  static I Bf16Pairs(const std::byte* row, int unit, int part) { return LoadI(row + unit * 64 + part * 32); }
  static I Fp8Pairs(const std::byte* row, int unit, int part) {
    const I codes = LoadI(row + unit / 2 * 64 + part * 32);
    const I zero = _mm256_setzero_si256();
    const I high_bytes = unit % 2 == 0 ? _mm256_unpacklo_epi8(zero, codes) : _mm256_unpackhi_epi8(zero, codes);
    const I even = Fp8InHighByte(_mm256_slli_epi32(high_bytes, 16));
    const I odd = Fp8InHighByte(high_bytes);
    return _mm256_or_si256(_mm256_srli_epi32(even, 16), odd);
  }
  static I Mxfp4Pairs(const std::byte* row, int unit, int part) {
    const I index = _mm256_and_si256(_mm256_srli_epi16(LoadI(row + part * 32), 4 * unit), _mm256_set1_epi16(15));
    const I low = _mm256_setr_epi8(0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64,  //
                                   0, 0, -128, -64, 0, 64, -128, -64, 0, 0, -128, -64, 0, 64, -128, -64);
    const I high = _mm256_setr_epi8(0, 63, 63, 63, 64, 64, 64, 64, -128, -65, -65, -65, -64, -64, -64, -64,  //
                                    0, 63, 63, 63, 64, 64, 64, 64, -128, -65, -65, -65, -64, -64, -64, -64);
    const I low_byte = _mm256_and_si256(_mm256_shuffle_epi8(low, index), _mm256_set1_epi16(255));
    return _mm256_or_si256(low_byte, _mm256_slli_epi16(_mm256_shuffle_epi8(high, index), 8));
  }
  // ... or the even (odd = 0) or odd k's in f32.
  static F F16(const std::byte* row, int unit, int part, int odd) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(row + unit * 64 + odd * 32 + part * 16)));
  }
  static F F32(const std::byte* row, int unit, int part, int odd) {
    return Load(reinterpret_cast<const float*>(row + unit * 128 + odd * 64 + part * 32));
  }
  static F E8m0(const std::byte* codes) {  // 0 is the subnormal 2^-127, 255 is NaN
    const I code = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(codes)));
    const I value = _mm256_max_epi32(_mm256_slli_epi32(code, 23), _mm256_set1_epi32(0x400000));
    const I nan = _mm256_cmpeq_epi32(code, _mm256_set1_epi32(255));
    return _mm256_castsi256_ps(_mm256_or_si256(value, _mm256_and_si256(nan, _mm256_set1_epi32(0x400000))));
  }
  static void StorePairs(std::byte* p, I pairs) { _mm256_storeu_si256(reinterpret_cast<I*>(p), pairs); }

 private:
  static I LoadI(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const I*>(p)); }
  // The f32 bits of the e4m3 code in each lane's top byte; other bits are ignored. The code's exponent and mantissa,
  // where f32 has its own, are the value times 2^-120, also for subnormal codes.
  static I Fp8InHighByte(I lanes) {
    const I magnitude = _mm256_and_si256(_mm256_srli_epi32(lanes, 4), _mm256_set1_epi32(0x07f00000));
    const I value = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(magnitude), Set1(0x1p120f)));
    const I nan = _mm256_cmpeq_epi32(magnitude, _mm256_set1_epi32(0x07f00000));
    const I sign = _mm256_and_si256(lanes, _mm256_set1_epi32(static_cast<int>(0x80000000u)));
    return _mm256_or_si256(_mm256_or_si256(value, sign), _mm256_and_si256(nan, _mm256_set1_epi32(0x7fc00000)));
  }
};

}  // namespace
}  // namespace expertd::cpu
