// Vectors of 16 for the kernel templates: AVX-512 F, BW, DQ, VL, and the bf16 dot product with VBMI where a file is
// compiled for them. Unnamed namespace: see simd_avx2.h.
#pragma once

#include <immintrin.h>

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/panel_layout.h"

namespace expertd::cpu {
namespace {

struct Avx512 {
  using F = __m512;
  using I = __m512i;
  static constexpr int kLanes = 16;
  static constexpr int kRowTile = 6;  // 6 rows x 64 outputs: 24 of 32 registers
  static constexpr int kUnitsAtATime = 4;

  static F Set1(float x) { return _mm512_set1_ps(x); }
  static F Load(const float* p) { return _mm512_loadu_ps(p); }
  static void Store(float* p, F x) { _mm512_storeu_ps(p, x); }
  static F Fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
  static F Add(F a, F b) { return _mm512_add_ps(a, b); }
  static F Sub(F a, F b) { return _mm512_sub_ps(a, b); }
  static F Mul(F a, F b) { return _mm512_mul_ps(a, b); }
  static F Div(F a, F b) { return _mm512_div_ps(a, b); }
  static F Min(F a, F b) { return _mm512_min_ps(a, b); }  // b where either is NaN
  static F Max(F a, F b) { return _mm512_max_ps(a, b); }  // b where either is NaN
  static F Abs(F x) { return _mm512_abs_ps(x); }
  static F Round(F x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
  static F PowerOfTwo(F n) {  // of whole n in [-126, 127]
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23));
  }

  static F LoadBf16(const std::uint16_t* p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16));
  }
  static void StoreBf16(std::uint16_t* p, F x) {  // to nearest even, NaN stays NaN
    const I bits = _mm512_castps_si512(x);
    const I odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const I rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const I kept = _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x400000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16)));
  }

  // The weights of unit `unit` of one row of codes: pairs of bf16 ... (a vector holds a whole unit: part is 0)
  static F Even(I pairs) { return _mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)); }
  static F Odd(I pairs) { return _mm512_castsi512_ps(_mm512_and_si512(pairs, _mm512_set1_epi32(~0xffff))); }
  static I Bf16Pairs(const std::byte* row, int unit, int /*part*/) { return _mm512_loadu_si512(row + unit * 64); }
  static I Mxfp4Pairs(const std::byte* row, int unit, int /*part*/) {
    // vpermw looks at the low five bits of each word: the 16 values stand twice, and nothing needs masking.
    const I values = _mm512_broadcast_i64x4(_mm256_setr_epi16(           //
        0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,  // 0, .5, 1, 1.5, 2, 3, 4, 6
        -0x8000, -0x4100, -0x4080, -0x4040, -0x4000, -0x3fc0, -0x3f80, -0x3f40));
    return _mm512_permutexvar_epi16(_mm512_srli_epi16(_mm512_loadu_si512(row), 4 * unit), values);
  }
#ifdef __AVX512VBMI__
  // The high and low byte of the bf16 value of each of the 128 magnitudes, looked up, beside the code's sign.
  static I Fp8Pairs(const std::byte* row, int unit, int /*part*/) {
    const I codes = _mm512_loadu_si512(row + unit / 2 * 64);
    const I magnitude_high =
        _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Bytes.high), codes, _mm512_load_si512(kFp8Bytes.high + 64));
    const I low =
        _mm512_permutex2var_epi8(_mm512_load_si512(kFp8Bytes.low), codes, _mm512_load_si512(kFp8Bytes.low + 64));
    constexpr int kAOrBAndC = 0xf8;
    const I high = _mm512_ternarylogic_epi32(magnitude_high, codes, _mm512_set1_epi8(-128), kAOrBAndC);
    return unit % 2 == 0 ? _mm512_unpacklo_epi8(low, high) : _mm512_unpackhi_epi8(low, high);
  }
#else
  static I Fp8Pairs(const std::byte* row, int unit, int /*part*/) {
    const I codes = _mm512_loadu_si512(row + unit / 2 * 64);
    const I zero = _mm512_setzero_si512();
    const I high_bytes = unit % 2 == 0 ? _mm512_unpacklo_epi8(zero, codes) : _mm512_unpackhi_epi8(zero, codes);
    const I even = Fp8InHighByte(_mm512_slli_epi32(high_bytes, 16));
    const I odd = Fp8InHighByte(high_bytes);
    return _mm512_or_si512(_mm512_srli_epi32(even, 16), odd);
  }
#endif
  // ... or the even (odd = 0) or odd k's in f32.
  static F F16(const std::byte* row, int unit, int /*part*/, int odd) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + unit * 64 + odd * 32)));
  }
  static F F32(const std::byte* row, int unit, int /*part*/, int odd) {
    return Load(reinterpret_cast<const float*>(row + unit * 128 + odd * 64));
  }
  static F E8m0(const std::byte* codes) {  // 0 is the subnormal 2^-127, 255 is NaN
    const I code = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes)));
    const I value = _mm512_max_epi32(_mm512_slli_epi32(code, 23), _mm512_set1_epi32(0x400000));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(code, _mm512_set1_epi32(255));
    return _mm512_castsi512_ps(_mm512_mask_or_epi32(value, nan, value, _mm512_set1_epi32(0x400000)));
  }
  static void StorePairs(std::byte* p, I pairs) { _mm512_storeu_si512(p, pairs); }

#ifdef __AVX512BF16__
  // acc + the two products of each lane's pair. Subnormal inputs and results count as zero.
  static F Dot(F acc, I a, I b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
  }
  static I SetPair(const std::byte* two_bf16) {
    int bits;
    __builtin_memcpy(&bits, two_bf16, sizeof(bits));
    return _mm512_set1_epi32(bits);
  }
#endif

 private:
#ifdef __AVX512VBMI__
  struct Fp8Bytes {
    alignas(64) std::uint8_t high[128];
    alignas(64) std::uint8_t low[128];
  };
  static constexpr Fp8Bytes MakeFp8Bytes() {
    Fp8Bytes bytes{};
    for (int code = 0; code < 128; ++code) {
      int exponent = code >> 3, mantissa = code & 7;
      int bf16 = (exponent + 120) << 7 | mantissa << 4;
      if (code == 127) {
        bf16 = 0x7fc0;  // NaN
      } else if (exponent == 0) {
        for (exponent = 1; mantissa != 0 && mantissa < 8; --exponent) mantissa *= 2;  // mantissa * 2^-9, normalised
        bf16 = mantissa == 0 ? 0 : (exponent + 120) << 7 | (mantissa & 7) << 4;
      }
      bytes.high[code] = static_cast<std::uint8_t>(bf16 >> 8);
      bytes.low[code] = static_cast<std::uint8_t>(bf16 & 255);
    }
    return bytes;
  }
  static const Fp8Bytes kFp8Bytes;
#else
  // See Avx2::Fp8InHighByte.
  static I Fp8InHighByte(I lanes) {
    const I magnitude = _mm512_and_si512(_mm512_srli_epi32(lanes, 4), _mm512_set1_epi32(0x07f00000));
    const I value = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(magnitude), Set1(0x1p120f)));
    const __mmask16 nan = _mm512_cmpeq_epi32_mask(magnitude, _mm512_set1_epi32(0x07f00000));
    const I sign = _mm512_and_si512(lanes, _mm512_set1_epi32(static_cast<int>(0x80000000u)));
    const I signed_value = _mm512_or_si512(value, sign);
    return _mm512_mask_or_epi32(signed_value, nan, signed_value, _mm512_set1_epi32(0x7fc00000));
  }
#endif
};

#ifdef __AVX512VBMI__
constexpr Avx512::Fp8Bytes Avx512::kFp8Bytes = Avx512::MakeFp8Bytes();
#endif

}  // namespace
}  // namespace expertd::cpu
