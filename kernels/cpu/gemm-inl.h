// The panel product of isa_kernels.h as templates over a vector type (simd_*.h), a weight format and a row type.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/isa_kernels.h"

namespace expertd::cpu {
namespace {

#define EXPERTD_INLINE inline __attribute__((always_inline))
// The codes of this many pairs ahead are on their way while one pair is computed: far enough for the memory's latency,
// near enough for the first-level cache. Measured: half or twice as far costs a tenth of the bandwidth and more.
constexpr int kPrefetchPairs = 32;

// Formats: Pairs gives two k's of kLanes outputs as bf16 pairs; Value gives one k of them in f32.
template <class V, PackedFormat kFormat>
struct Weights {
  static EXPERTD_INLINE typename V::I Pairs(const std::byte* row, int unit, int part) {
    if constexpr (kFormat == PackedFormat::kFp8) {
      return V::Fp8Pairs(row, unit, part);
    } else if constexpr (kFormat == PackedFormat::kMxfp4) {
      return V::Mxfp4Pairs(row, unit, part);
    } else {
      return V::Bf16Pairs(row, unit, part);
    }
  }
  static EXPERTD_INLINE typename V::F Value(const std::byte* row, int unit, int part, int odd) {
    if constexpr (kFormat == PackedFormat::kF16) {
      return V::F16(row, unit, part, odd);
    } else if constexpr (kFormat == PackedFormat::kF32) {
      return V::F32(row, unit, part, odd);
    } else {
      const typename V::I pairs = Pairs(row, unit, part);
      return odd == 0 ? V::Even(pairs) : V::Odd(pairs);
    }
  }
};

template <class V>
EXPERTD_INLINE typename V::F ScaleOf(PackedFormat format, const std::byte* scales, int unit, int part) {
  if (format == PackedFormat::kMxfp4) return V::E8m0(scales + unit * kUnitOuts + part * V::kLanes);
  return V::Set1(reinterpret_cast<const float*>(scales)[unit]);
}

// One group of k for one tile of rows.
struct Group {
  const std::byte* codes = nullptr;
  const std::byte* scales = nullptr;          // null: none
  PackedFormat scaled = PackedFormat::kBF16;  // what the scales are of
  int pairs = 0;
  const std::byte* rows = nullptr;  // first row's elements of this group
  std::int64_t row_pitch = 0;
  float* c = nullptr;
  std::int64_t c_pitch = 0;
};

// C += scale * (rows . weights) for kRows rows and kUnits units from unit `first`; products of f32.
template <class V, PackedFormat kFormat, int kRows, int kUnits>
EXPERTD_INLINE void AccumulateF32(const Group& group, int first,
                                  typename V::F (&acc)[kRows][kUnits][kUnitOuts / V::kLanes]) {
  using W = Weights<V, kFormat>;
  constexpr int kPairBytes = kFormatLayout[static_cast<int>(kFormat)].pair_bytes;
  const std::byte* codes = group.codes;
  const std::byte* rows = group.rows;
  for (int pair = 0; pair < group.pairs; ++pair, codes += kPairBytes, rows += 2 * sizeof(float)) {
#pragma GCC unroll 8
    for (int line = 0; line < kPairBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(codes) + kPrefetchPairs * kPairBytes + line, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma GCC unroll 2
      for (int part = 0; part < kUnitOuts / V::kLanes; ++part) {
#pragma GCC unroll 2
        for (int odd = 0; odd < 2; ++odd) {
          const typename V::F weight = W::Value(codes, first + unit, part, odd);
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) {
            const float* x = reinterpret_cast<const float*>(rows + m * group.row_pitch);
            acc[m][unit][part] = V::Fma(V::Set1(x[odd]), weight, acc[m][unit][part]);
          }
        }
      }
    }
  }
}

// The same with bf16 rows and the processor's bf16 dot product.
template <class V, PackedFormat kFormat, int kRows, int kUnits>
EXPERTD_INLINE void AccumulateBf16(const Group& group, int first, typename V::F (&acc)[kRows][kUnits][1]) {
  using W = Weights<V, kFormat>;
  constexpr int kPairBytes = kFormatLayout[static_cast<int>(kFormat)].pair_bytes;
  const std::byte* codes = group.codes;
  const std::byte* rows = group.rows;
  for (int pair = 0; pair < group.pairs; ++pair, codes += kPairBytes, rows += 4) {
#pragma GCC unroll 4
    for (int line = 0; line < kPairBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(codes) + kPrefetchPairs * kPairBytes + line, _MM_HINT_T0);
    }
    typename V::I weights[kUnits];
#pragma GCC unroll 4
    for (int unit = 0; unit < kUnits; ++unit) weights[unit] = W::Pairs(codes, first + unit, 0);
#pragma GCC unroll 8
    for (int m = 0; m < kRows; ++m) {
      const typename V::I x = V::SetPair(rows + m * group.row_pitch);
#pragma GCC unroll 4
      for (int unit = 0; unit < kUnits; ++unit) acc[m][unit][0] = V::Dot(acc[m][unit][0], x, weights[unit]);
    }
  }
}

template <class V, PackedFormat kFormat, bool kBf16Rows, int kRows>
void Tile(const Group& group) {
  constexpr int kUnits = V::kUnitsAtATime;
  constexpr int kParts = kUnitOuts / V::kLanes;
  for (int first = 0; first < kPanelUnits; first += kUnits) {
    typename V::F acc[kRows][kUnits][kParts] = {};
    if constexpr (kBf16Rows) {
      AccumulateBf16<V, kFormat, kRows, kUnits>(group, first, acc);
    } else {
      AccumulateF32<V, kFormat, kRows, kUnits>(group, first, acc);
    }
#pragma GCC unroll 4
    for (int unit = 0; unit < kUnits; ++unit) {
#pragma GCC unroll 2
      for (int part = 0; part < kParts; ++part) {
        float* c = group.c + (first + unit) * kUnitOuts + part * V::kLanes;
        if (group.scales == nullptr) {
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) {
            V::Store(c + m * group.c_pitch, V::Add(V::Load(c + m * group.c_pitch), acc[m][unit][part]));
          }
        } else {
          const typename V::F scale = ScaleOf<V>(group.scaled, group.scales, first + unit, part);
#pragma GCC unroll 8
          for (int m = 0; m < kRows; ++m) {
            V::Store(c + m * group.c_pitch, V::Fma(acc[m][unit][part], scale, V::Load(c + m * group.c_pitch)));
          }
        }
      }
    }
  }
}

template <class V, PackedFormat kFormat, bool kBf16Rows>
void TileOf(int rows, const Group& group) {
  switch (rows) {
    case 1:
      return Tile<V, kFormat, kBf16Rows, 1>(group);
    case 2:
      return Tile<V, kFormat, kBf16Rows, 2>(group);
    case 3:
      return Tile<V, kFormat, kBf16Rows, 3>(group);
    case 4:
      return Tile<V, kFormat, kBf16Rows, 4>(group);
    case 5:
      if constexpr (V::kRowTile >= 5) return Tile<V, kFormat, kBf16Rows, 5>(group);
      break;
    case 6:
      if constexpr (V::kRowTile >= 6) return Tile<V, kFormat, kBf16Rows, 6>(group);
      break;
  }
}

template <class V, PackedFormat kFormat, bool kBf16Rows>
void Tiles(Group group, std::int64_t m) {
  for (std::int64_t row = 0; row < m; row += V::kRowTile) {
    TileOf<V, kFormat, kBf16Rows>(static_cast<int>(m - row < V::kRowTile ? m - row : V::kRowTile), group);
    group.rows += V::kRowTile * group.row_pitch;
    group.c += V::kRowTile * group.c_pitch;
  }
}

// A group's codes as bf16 pairs: exact, and decoded once for many rows.
template <class V, PackedFormat kFormat>
void DecodeGroup(const std::byte* codes, int pairs, std::byte* out) {
  constexpr int kPairBytes = kFormatLayout[static_cast<int>(kFormat)].pair_bytes;
  constexpr int kVectorBytes = V::kLanes * 4;
  for (int pair = 0; pair < pairs; ++pair, codes += kPairBytes, out += 256) {
#pragma GCC unroll 2
    for (int line = 0; line < kPairBytes; line += 64) {
      _mm_prefetch(reinterpret_cast<const char*>(codes) + kPrefetchPairs * kPairBytes + line, _MM_HINT_T0);
    }
#pragma GCC unroll 4
    for (int unit = 0; unit < kPanelUnits; ++unit) {
#pragma GCC unroll 2
      for (int part = 0; part < kUnitOuts / V::kLanes; ++part) {
        V::StorePairs(out + unit * 64 + part * kVectorBytes, Weights<V, kFormat>::Pairs(codes, unit, part));
      }
    }
  }
}

template <class V, PackedFormat kFormat, bool kBf16Rows>
void Panel(const PanelArgs& args) {
  constexpr FormatLayout kLayout = kFormatLayout[static_cast<int>(kFormat)];
  constexpr bool kCoded = kFormat == PackedFormat::kFp8 || kFormat == PackedFormat::kMxfp4;
  // Decoding is worth a copy when several tiles of rows share it. Both ways multiply and add the same numbers.
  const bool decode = kCoded && args.m > V::kRowTile;
  alignas(64) std::byte decoded[kLayout.group_k / 2 * 256];

  Group group = {
      .scaled = kFormat, .rows = args.rows, .row_pitch = args.row_pitch, .c = args.c, .c_pitch = args.c_pitch};
  const std::byte* record = args.panel;
  for (std::int64_t k0 = 0; k0 < args.k; k0 += kLayout.group_k) {
    group.pairs = static_cast<int>(args.k - k0 < kLayout.group_k ? args.k - k0 : kLayout.group_k) / 2;
    group.scales = kLayout.scale_bytes > 0 ? record : nullptr;
    group.codes = record + kLayout.scale_bytes;
    record = group.codes + group.pairs * kLayout.pair_bytes;
    if (decode) {
      if constexpr (kCoded) {
        DecodeGroup<V, kFormat>(group.codes, group.pairs, decoded);
        group.codes = decoded;
        Tiles<V, PackedFormat::kBF16, kBf16Rows>(group, args.m);
      }
    } else {
      Tiles<V, kFormat, kBf16Rows>(group, args.m);
    }
    group.rows += 2 * group.pairs * (kBf16Rows ? 2 : 4);
  }
}

}  // namespace
}  // namespace expertd::cpu
