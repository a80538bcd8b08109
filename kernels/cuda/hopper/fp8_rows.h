// Rows in e4m3 for products of two e4m3 operands: plain arithmetic, tested on the CPU.
//
// A row is quantised by lines of 128 elements, each with a scale of its own: bf16 elements divided by the scale,
// rounded to nearest even. The scale is a power of two. So dividing is exact, and a first product whose sums differ in
// the last bits gives its results another scale in one case of a million, where a quotient by 448 would move all 128
// roundings; against rows that are not quantised both err alike, because e4m3 has an exponent itself.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/packed_weights.h"

namespace expertd::cuda {

// f32 bits.
struct Fp8Scale {
  std::uint32_t scale, inverse;
};
// Brings the greatest magnitude of a line, `most` (bf16 without its sign), into (224, 448]: 448 is the greatest number
// of e4m3. Of a line with NaN or infinity the scale is NaN, and with it all that the row gives.
constexpr Fp8Scale ScaleOfMost(std::uint32_t most) {
  if (most >= 0x7f80) return {0x7fc00000, 0x7fc00000};
  const std::uint32_t above = ((most << 16) + 0x1fffff) >> 23;  // exponent, one more past 1.75
  const std::uint32_t exponent = above > 9 ? above - 8 : 1;
  return {exponent << 23, (254 - exponent) << 23};
}

// Bytes of a row of `width` elements: whole lines, the last one filled up with zeros.
constexpr std::int64_t Fp8RowBytes(std::int64_t width) { return CeilDiv(width, kPackedK) * kPackedK; }

struct QuantiseRowsLaunch {
  std::int64_t n = 0, d = 0;
  const void* from = nullptr;  // bf16 [n, d], 16-byte aligned
  void* codes = nullptr;       // [n, Fp8RowBytes(d)]
  float* scales = nullptr;     // [lines of d, n]
  bool fresh = false;          // the stream's last kernel writes `from`; otherwise it need not be done
};
// Enqueues on `stream` (a cudaStream_t) a kernel that starts early, as LaunchFusedForward's; the answer is a
// cudaError_t. Hopper.
int LaunchQuantiseRows(const QuantiseRowsLaunch& launch, void* stream);

}  // namespace expertd::cuda
