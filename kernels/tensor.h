// Element types, non-owning views and host conversions between them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "absl/strings/string_view.h"

namespace expertd {

// kF4E2M1 holds two codes a byte (low nibble first); kE8M0 is a power-of-two scale with bias 127. The second line is
// what files may hold beside weights: known so that its size can be checked, never computed with.
// clang-format off
enum class DType : std::uint8_t {
  kF32, kF16, kBF16, kF8E4M3, kF4E2M1, kE8M0, kI32, kI64, kU8,
  kF64, kF8E5M2, kI8, kI16, kU16, kU32, kU64, kBool,
};
// clang-format on

constexpr int BitsOf(DType dtype) {
  switch (dtype) {
    case DType::kI64:
    case DType::kU64:
    case DType::kF64:
      return 64;
    case DType::kF32:
    case DType::kI32:
    case DType::kU32:
      return 32;
    case DType::kF16:
    case DType::kBF16:
    case DType::kI16:
    case DType::kU16:
      return 16;
    case DType::kF8E4M3:
    case DType::kF8E5M2:
    case DType::kE8M0:
    case DType::kI8:
    case DType::kU8:
    case DType::kBool:
      return 8;
    case DType::kF4E2M1:
      return 4;
  }
  return 0;
}

// Bytes of `count` elements (a last half byte counts as one). `count` >= 0 and small enough: callers check sizes first.
constexpr std::int64_t BytesOf(DType dtype, std::int64_t count) { return (count * BitsOf(dtype) + 7) / 8; }

// "bf16", "f32", ...: the spelling of flags, messages and metrics.
absl::string_view DTypeName(DType dtype);

// A matrix of weights as a checkpoint stores it: element (o, i) of [out, in] at data + o * out_stride + i * in_stride
// elements (of kF4E2M1: out_stride in elements, in_stride 1). Strides let transposed, stacked and interleaved layouts
// be read in place. Does not own its memory.
struct WeightView {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  std::int64_t out = 0;
  std::int64_t in = 0;
  std::int64_t out_stride = 0;
  std::int64_t in_stride = 1;

  // kF8E4M3: f32 multipliers of 128 x 128 blocks, [ceil(out/128), ceil(in/128)] with this row stride; otherwise null.
  const float* block_scales = nullptr;
  std::int64_t block_scale_stride = 0;
  // kF4E2M1: e8m0 scales of 32 elements along in, [out, in/32] with this row stride; otherwise null.
  const std::uint8_t* group_scales = nullptr;
  std::int64_t group_scale_stride = 0;

  bool empty() const { return data == nullptr; }
  // The value as the checkpoint defines it, scales applied. Slow: for tests, the reference and odd corners.
  double At(std::int64_t o, std::int64_t i) const;
};

// A vector of `size` elements, `stride` elements apart; empty when data is null. Does not own its memory.
struct VectorView {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  std::int64_t size = 0;
  std::int64_t stride = 1;

  bool empty() const { return data == nullptr; }
  double At(std::int64_t i) const;
};

inline float Bf16ToF32(std::uint16_t bits) { return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16); }

// Round to nearest even; NaN stays a (quiet) NaN.
inline std::uint16_t F32ToBf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((bits >> 16) | 0x40u);
  return static_cast<std::uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float F16ToF32(std::uint16_t bits);
// OCP e4m3 (no infinities; 0x7f and 0xff are NaN).
float F8E4M3ToF32(std::uint8_t code);
// OCP e2m1, low four bits of `code`: 0, .5, 1, 1.5, 2, 3, 4, 6 and their negatives.
float F4E2M1ToF32(std::uint8_t code);
// 2^(code - 127); 255 is NaN.
float E8M0ToF32(std::uint8_t code);

}  // namespace expertd
