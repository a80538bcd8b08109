// How the kernel for few rows is divided: plain arithmetic, tested without a GPU.
//
// A unit is 16 rows of an expert's weights (first product: eight gate rows and the eight up rows that belong to them)
// by up to eight of its token rows, and belongs to one warp. A stage of a warp's own ring holds 128 of K of both.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/hopper/packed_weights.h"

namespace expertd::cuda {

inline constexpr int kUnitWeights = 16, kUnitTokens = 8, kStageK = 128;
inline constexpr int kStageRowBytes = kStageK * 2;  // of a token row
// Of `n` token rows an expert has no more, unless a row names it twice: then it has several tiles of them. Few rows
// leave memory for longer rings.
constexpr int UnitTokens(std::int64_t n) { return n <= 2 ? 2 : kUnitTokens; }

// Of a unit's weights: a half is 64 of K.
constexpr int UnitHalfBytes(WeightCode code) { return kUnitWeights * PackedBlock{code}.line_bytes(); }
constexpr int UnitScaleBytes(WeightCode code) {
  return code == WeightCode::kBF16 ? 0 : code == WeightCode::kFp8 ? 16 : kUnitWeights * kStageK / 32;
}

// A warp's ring. Codes want many warps that decode; bf16 wants few with long rings.
struct StreamShape {
  WeightCode code;
  int tokens;
  constexpr int warps() const { return code == WeightCode::kBF16 ? 8 : 16; }
  // Weights, token rows, scales.
  constexpr int rows_at() const { return 2 * UnitHalfBytes(code); }
  constexpr int scales_at() const { return rows_at() + tokens * kStageRowBytes; }
  constexpr int stage_bytes() const { return scales_at() + (UnitScaleBytes(code) + 127) / 128 * 128; }
  constexpr int stages() const { return 216 * 1024 / (warps() * stage_bytes()); }
};

// What a block may have on Hopper.
inline constexpr int kMostSharedBytes = 227 * 1024;

// What a block holds beside its rings: token tiles, addresses of token rows, where experts' tiles begin, units on their
// way of each warp, shares drawn.
inline constexpr int kUnitRing = 16;  // more than a ring has stages
struct StreamTables {
  int addresses, units, starts, shares, bytes;  // offsets; token tiles come first, 16 bytes each
  constexpr StreamTables(int warps, std::int64_t positions, std::int64_t experts, int blocks)
      : addresses(static_cast<int>(positions) * 16),
        units(addresses + static_cast<int>(positions + positions % 2) * 8),
        starts(units + warps * kUnitRing * 16),
        shares(starts + static_cast<int>(experts + 1) * 4),
        bytes(shares + (2 * blocks + 2) * 4) {}
};
constexpr int StreamSharedBytes(const StreamShape& shape, const StreamTables& tables) {
  return 128 + shape.warps() * shape.stages() * shape.stage_bytes() + tables.bytes;
}
// Where warps stream: up to so many positions, and so many weights if each had an expert of its own. The pipelines of
// the other kernel read more bytes in a second, and this one begins earlier and shares them out more evenly.
inline constexpr std::int64_t kStreamPositions = 16, kStreamWeights = 200'000'000;
// A row of two large experts streams as well: they are too few tiles for that kernel to share out.
constexpr bool Streams(std::int64_t positions, std::int64_t expert_size) {
  return positions <= 2 || (positions <= kStreamPositions && positions * expert_size <= kStreamWeights);
}
static_assert([] {
  for (const WeightCode code : {WeightCode::kBF16, WeightCode::kFp8, WeightCode::kMxfp4}) {
    for (const int tokens : {2, kUnitTokens}) {
      const StreamShape shape = {code, tokens};
      if (shape.stages() < 2 || shape.stages() >= kUnitRing) return false;
      if (StreamSharedBytes(shape, StreamTables(shape.warps(), kStreamPositions, 1024, 256)) > kMostSharedBytes)
        return false;
    }
  }
  return true;
}());

}  // namespace expertd::cuda
