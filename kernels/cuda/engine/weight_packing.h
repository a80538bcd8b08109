// Blocks of packed_weights.h from a checkpoint's weights.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <limits>

#include "absl/types/span.h"
#include "kernels/cuda/hopper/packed_weights.h"
#include "kernels/tensor.h"

namespace expertd::cuda {

// 64 elements, `stride` apart, as line `line`.
inline void PackBf16Line(const std::uint8_t* elements, std::int64_t stride, int line, std::uint8_t* to) {
  for (int k = 0; k < kPackedLineK; k += 8) {
    std::uint8_t* const chunk = to + Bf16Byte(line, k);
    if (stride == 1) {
      std::memcpy(chunk, elements + k * 2, 16);
    } else {
      for (int i = 0; i < 8; ++i) std::memcpy(chunk + i * 2, elements + (k + i) * stride * 2, 2);
    }
  }
}

// 64 codes of one byte, `stride` apart, as a line. True: one of them is NaN, which the fused kernel cannot tell.
inline bool PackFp8Line(const std::uint8_t* codes, std::int64_t stride, std::uint8_t* line) {
  static constexpr auto kByte = [] {
    std::array<std::uint8_t, kPackedLineK> byte{};
    for (int k = 0; k < kPackedLineK; ++k) byte[k] = static_cast<std::uint8_t>(Fp8Byte(k));
    return byte;
  }();
  bool nan = false;
  for (int k = 0; k < kPackedLineK; ++k) {
    const std::uint8_t code = codes[k * stride];
    nan |= (code & 0x7f) == 0x7f;
    line[kByte[k]] = code;
  }
  return nan;
}

// `count` codes of one byte, `stride` apart, as line `line` of kFp8Both.
inline void PackFp8BothLine(const std::uint8_t* codes, std::int64_t stride, int count, int line, std::uint8_t* to) {
  for (int k = 0; k < count; ++k) to[Fp8BothByte(line, k)] = codes[k * stride];
}

// 64 codes, two a byte, low nibble first, as a line.
inline void PackFp4Line(const std::uint8_t* codes, std::uint8_t* line) {
  // What a byte, elements k and k + 1, puts into its quarter of the line, for each k / 8.
  static constexpr auto kBits = [] {
    std::array<std::array<std::uint64_t, 256>, kPackedLineK / 8> bits{};
    for (int eight = 0; eight < kPackedLineK / 8; ++eight) {
      for (int i = 0; i < 8; ++i) {
        const int bit = Fp4Place(eight * 8 + i / 4).bit[i % 4];
        for (unsigned byte = 0; byte < 256; ++byte) bits[eight][byte] |= std::uint64_t{byte >> i & 1} << bit;
      }
    }
    return bits;
  }();
  std::uint64_t quarters[4] = {};
  for (int k = 0; k < kPackedLineK; k += 2) quarters[k % 8 / 2] |= kBits[k / 8][codes[k / 2]];
  std::memcpy(line, quarters, sizeof(quarters));
}

// Block (tile, step) of a matrix; `views` are gate and up for Packing::kGateUp, else the matrix alone, all of one code.
// A block of kFp8 with a NaN code has a NaN scale.
inline void PackBlock(WeightCode code, absl::Span<const WeightView> views, Packing packing, std::int64_t tile,
                      std::int64_t step, std::byte* to) {
  const PackedBlock block = {code};
  auto* const bytes = reinterpret_cast<std::uint8_t*>(to);
  std::memset(bytes, 0, static_cast<std::size_t>(block.bytes()));
  const bool paired = packing == Packing::kGateUp;
  bool nan[2] = {};  // of even and odd eights
  for (int line = 0; line < kPackedRows; ++line) {
    const int odd = line % 16 / 8;
    const WeightView& view = views[paired ? odd : 0];
    const std::int64_t row = paired ? tile * 64 + line / 16 * 8 + line % 8 : tile * kPackedRows + line;
    if (row >= view.out) continue;
    const auto* const codes = static_cast<const std::uint8_t*>(view.data);
    for (int half = 0; half < kPackedK / block.line_k(); ++half) {
      const std::int64_t k = step * kPackedK + half * block.line_k();
      if (k >= view.in) break;
      std::uint8_t* const place = bytes + block.LineAt(line, k);
      if (code == WeightCode::kFp8Both) {
        PackFp8BothLine(codes + row * view.out_stride + k * view.in_stride, view.in_stride,
                        static_cast<int>(std::min<std::int64_t>(kPackedK, view.in - k)), line, place);
      } else if (code == WeightCode::kBF16) {
        PackBf16Line(codes + (row * view.out_stride + k * view.in_stride) * 2, view.in_stride, line, place);
      } else if (code == WeightCode::kFp8) {
        nan[odd] |= PackFp8Line(codes + row * view.out_stride + k * view.in_stride, view.in_stride, place);
      } else {
        PackFp4Line(codes + (row * view.out_stride + k) / 2, place);
        for (int group = 0; group < 2; ++group) {
          const int scale = view.group_scales[row * view.group_scale_stride + k / 32 + group] + kFp4ScaleOffset;
          bytes[line * 4 + Fp4ScaleByte(half * 2 + group)] = static_cast<std::uint8_t>(std::min(scale, 255));
        }
      }
    }
  }
  if (code != WeightCode::kFp8 && code != WeightCode::kFp8Both) return;
  for (int odd = 0; odd < 2; ++odd) {
    const WeightView& view = views[paired ? odd : 0];
    const std::int64_t row = paired ? tile * 64 : tile * kPackedRows;
    const bool has_nan = paired ? nan[odd] : nan[0] || nan[1];
    const float scale = has_nan ? std::numeric_limits<float>::quiet_NaN()
                                : view.block_scales[row / 128 * view.block_scale_stride + step];
    std::memcpy(bytes + block.scales_at() + odd * 4, &scale, sizeof(scale));
  }
}

}  // namespace expertd::cuda
