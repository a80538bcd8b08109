#include "kernels/tensor.h"

#include <cmath>
#include <limits>

namespace expertd {
namespace {

double ElementAt(const void* data, DType dtype, std::int64_t index) {
  switch (dtype) {
    case DType::kF32:
      return static_cast<const float*>(data)[index];
    case DType::kF16:
      return F16ToF32(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kBF16:
      return Bf16ToF32(static_cast<const std::uint16_t*>(data)[index]);
    case DType::kF8E4M3:
      return F8E4M3ToF32(static_cast<const std::uint8_t*>(data)[index]);
    case DType::kF4E2M1: {
      const std::uint8_t pair = static_cast<const std::uint8_t*>(data)[index / 2];
      return F4E2M1ToF32(index % 2 == 0 ? pair & 15 : pair >> 4);
    }
    case DType::kE8M0:
      return E8M0ToF32(static_cast<const std::uint8_t*>(data)[index]);
    case DType::kI32:
      return static_cast<const std::int32_t*>(data)[index];
    case DType::kI64:
      return static_cast<double>(static_cast<const std::int64_t*>(data)[index]);
    case DType::kU8:
      return static_cast<const std::uint8_t*>(data)[index];
    case DType::kF64:
    case DType::kF8E5M2:
    case DType::kI8:
    case DType::kI16:
    case DType::kU16:
    case DType::kU32:
    case DType::kU64:
    case DType::kBool:
      break;
  }
  return std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

absl::string_view DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return "f32";
    case DType::kF16:
      return "f16";
    case DType::kBF16:
      return "bf16";
    case DType::kF8E4M3:
      return "f8_e4m3";
    case DType::kF4E2M1:
      return "f4_e2m1";
    case DType::kE8M0:
      return "e8m0";
    case DType::kI32:
      return "i32";
    case DType::kI64:
      return "i64";
    case DType::kU8:
      return "u8";
    case DType::kF64:
      return "f64";
    case DType::kF8E5M2:
      return "f8_e5m2";
    case DType::kI8:
      return "i8";
    case DType::kI16:
      return "i16";
    case DType::kU16:
      return "u16";
    case DType::kU32:
      return "u32";
    case DType::kU64:
      return "u64";
    case DType::kBool:
      return "bool";
  }
  return "?";
}

double WeightView::At(std::int64_t o, std::int64_t i) const {
  double value = ElementAt(data, dtype, o * out_stride + i * in_stride);
  if (block_scales != nullptr) value *= block_scales[(o / 128) * block_scale_stride + i / 128];
  if (group_scales != nullptr) value *= E8M0ToF32(group_scales[o * group_scale_stride + i / 32]);
  return value;
}

double VectorView::At(std::int64_t i) const { return ElementAt(data, dtype, i * stride); }

float F16ToF32(std::uint16_t bits) {
  const float sign = (bits & 0x8000u) != 0 ? -1.0f : 1.0f;
  const int exponent = (bits >> 10) & 31;
  const int mantissa = bits & 0x3ff;
  if (exponent == 31) return mantissa != 0 ? std::numeric_limits<float>::quiet_NaN() : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(static_cast<float>(mantissa), -24);
  return sign * std::ldexp(static_cast<float>(mantissa + 1024), exponent - 25);
}

float F8E4M3ToF32(std::uint8_t code) {
  const std::uint32_t sign = (code & 0x80u) << 24;
  const std::uint32_t exponent = (code >> 3) & 15, mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) return std::numeric_limits<float>::quiet_NaN();
  if (exponent == 0) return std::copysign(static_cast<float>(mantissa) * 0x1p-9f, std::bit_cast<float>(sign));
  return std::bit_cast<float>(sign | (exponent + 120) << 23 | mantissa << 20);
}

float F4E2M1ToF32(std::uint8_t code) {
  constexpr float kMagnitude[8] = {0.0f, 0.5f, 1.0f, 1.5f, 2.0f, 3.0f, 4.0f, 6.0f};
  const float magnitude = kMagnitude[code & 7];
  return (code & 8) != 0 ? -magnitude : magnitude;
}

float E8M0ToF32(std::uint8_t code) {
  if (code == 255) return std::numeric_limits<float>::quiet_NaN();
  return code == 0 ? 0x1p-127f : std::bit_cast<float>(std::uint32_t{code} << 23);
}

}  // namespace expertd
