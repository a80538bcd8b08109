#include "server/codec/f8_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "absl/strings/str_cat.h"
#include "kernels/tensor.h"
#include "server/codec/wire_reader.h"

namespace expertd {
namespace {

// Elements that are worked on at once, from and to local memory: in place, loads and stores would have to keep their
// order, and nothing would vectorise. A multiple of every scale block but the whole row.
constexpr std::int64_t kChunk = 128;

constexpr float kMaxF8 = 448.0f;
constexpr auto kMaxF8Bits = std::bit_cast<std::int32_t>(kMaxF8);
constexpr std::uint32_t kF32NaN = 0x7fc00000u;

// Without branches and table look-ups: e4m3's exponent and mantissa are f32's, 120 apart; what is below e4m3's normal
// range lacks the leading one, which is put there and subtracted again.
inline float FromF8(std::uint8_t code) {
  constexpr std::uint32_t kSubnormalExponent = 121u << 23;  // of 2^-6
  const std::uint32_t magnitude = code & 0x7fu;
  const float normal = std::bit_cast<float>((magnitude << 20) + (120u << 23));
  const float subnormal =
      std::bit_cast<float>((magnitude << 20) + kSubnormalExponent) - std::bit_cast<float>(kSubnormalExponent);
  std::uint32_t bits = std::bit_cast<std::uint32_t>(magnitude < 8 ? subnormal : normal);
  bits = magnitude == 0x7fu ? kF32NaN : bits;
  return std::bit_cast<float>(bits | static_cast<std::uint32_t>(code & 0x80u) << 24);
}

// The code of an f32 in 0..448, given and rounded (to nearest even) as bits. Signed, as all comparisons in these loops:
// every instruction set has those.
inline std::int32_t ToF8(std::int32_t bits) {
  // 2^14's last bit is worth 2^-9, e4m3's smallest step: the addition rounds, and the sum's low bits are the code.
  constexpr float kStep = 16384.0f;
  const std::int32_t subnormal =
      std::bit_cast<std::int32_t>(std::bit_cast<float>(bits) + kStep) - std::bit_cast<std::int32_t>(kStep);
  const std::int32_t normal = (bits + 0x7ffff + (bits >> 20 & 1) - (120 << 23)) >> 20;
  return bits < (121 << 23) ? subnormal : normal;
}

// As F32ToBf16, but without its branch.
inline std::uint16_t ToBf16(float value) {
  const std::uint32_t bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  return static_cast<std::uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16 | 0x40u) : rounded);
}

void DecodeChunk(const std::uint8_t* codes, float scale, std::int64_t count, std::uint16_t* out) {
  for (std::int64_t i = 0; i < count; ++i) out[i] = ToBf16(FromF8(codes[i]) * scale);
}

// A bf16's magnitude as an integer, zero where it is not finite: for finite values the order is the same.
std::uint16_t LargestMagnitude(const std::uint16_t* values, std::int64_t count) {
  std::int16_t largest = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto magnitude = static_cast<std::int16_t>(values[i] & 0x7fff);
    const std::int16_t finite = magnitude < 0x7f80 ? magnitude : std::int16_t{0};
    largest = finite > largest ? finite : largest;
  }
  return static_cast<std::uint16_t>(largest);
}

void EncodeChunk(const std::uint16_t* values, float scale, std::int64_t count, std::uint8_t* out) {
  for (std::int64_t i = 0; i < count; ++i) {
    const std::int32_t magnitude = values[i] & 0x7fff;
    const auto quotient = std::bit_cast<std::int32_t>(std::bit_cast<float>(magnitude << 16) / scale);
    // Rounding of scale and quotient may end a hair above 448. Infinity comes out as NaN.
    const std::int32_t clamped = quotient < kMaxF8Bits ? quotient : kMaxF8Bits;
    const std::int32_t code = magnitude < 0x7f80 ? ToF8(clamped) : 0x7f;
    out[i] = static_cast<std::uint8_t>(code | (values[i] >> 8 & 0x80));
  }
}

// The elements that share a scale.
std::int64_t BlockElements(std::int64_t hidden_size, std::int64_t block) { return block == 0 ? hidden_size : block; }

float ScaleOf(std::uint16_t largest) {
  const float scale = Bf16ToF32(largest) / kMaxF8;
  // Also not for what lies at the end of f32's range, where the division below would lose bits.
  return scale < std::numeric_limits<float>::min() ? 1.0f : scale;
}

std::uint16_t LargestOfBlock(const std::byte* block, std::int64_t count) {
  std::uint16_t largest = 0, values[kChunk];
  for (std::int64_t i = 0; i < count; i += kChunk) {
    const std::int64_t some = std::min(kChunk, count - i);
    std::memcpy(values, block + i * 2, static_cast<std::size_t>(some) * 2);
    largest = std::max(largest, LargestMagnitude(values, some));
  }
  return largest;
}

}  // namespace

absl::Status DecodeF8Rows(Slices slices, WireRange codes, WireRange scales, std::int64_t rows, std::int64_t hidden_size,
                          std::int64_t block, std::byte* out) {
  WireReader code_reader(slices), scale_reader(slices);
  code_reader.Skip(codes.offset);
  scale_reader.Skip(scales.offset);
  const std::int64_t shared = BlockElements(hidden_size, block);
  std::uint8_t in[kChunk];
  std::uint16_t decoded[kChunk];
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t first = 0; first < hidden_size; first += shared) {
      float scale = 0;
      scale_reader.Read(reinterpret_cast<std::byte*>(&scale), sizeof(scale));
      if (!std::isfinite(scale)) {
        return absl::InvalidArgumentError(
            absl::StrCat("scales[", row, ",", first / shared, "]=", scale, " is not finite"));
      }
      const std::int64_t end = std::min(first + shared, hidden_size);
      for (std::int64_t i = first; i < end; i += kChunk) {
        const std::int64_t count = std::min(kChunk, end - i);
        code_reader.Read(reinterpret_cast<std::byte*>(in), static_cast<std::uint64_t>(count));
        DecodeChunk(in, scale, count, decoded);
        std::memcpy(out, decoded, static_cast<std::size_t>(count) * 2);
        out += count * 2;
      }
    }
  }
  return absl::OkStatus();
}

void EncodeF8Rows(std::byte* rows_data, std::int64_t rows, std::int64_t hidden_size, std::int64_t block,
                  std::byte* scales) {
  const std::int64_t shared = BlockElements(hidden_size, block);
  std::uint16_t values[kChunk];
  std::uint8_t codes[kChunk];
  const std::byte* in = rows_data;
  std::byte* out = rows_data;
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t first = 0; first < hidden_size; first += shared) {
      const std::int64_t end = std::min(first + shared, hidden_size);
      const float scale = ScaleOf(LargestOfBlock(in, end - first));
      std::memcpy(scales, &scale, sizeof(scale));
      scales += sizeof(scale);
      for (std::int64_t i = first; i < end; i += kChunk) {
        const std::int64_t count = std::min(kChunk, end - i);
        std::memcpy(values, in, static_cast<std::size_t>(count) * 2);
        EncodeChunk(values, scale, count, codes);
        std::memcpy(out, codes, static_cast<std::size_t>(count));
        in += count * 2;
        out += count;
      }
    }
  }
}

}  // namespace expertd
