// How the kernel for few rows is divided: plain arithmetic, tested without a GPU.
//
// A unit is 16 rows of an expert's weights (first product: eight gate rows and the eight up rows that belong to them)
// by up to eight of its token rows, and belongs to one warp. A stage of a warp's own ring holds 128 of K of both.
#pragma once

#include <cstdint>

#include "kernels/cuda/hopper/packed_weights.h"

namespace expertd::cuda {

inline constexpr int kUnitWeights = 16, kUnitTokens = 8, kStageK = 128;
inline constexpr int kStageRowBytes = kStageK * 2;  // of a token row

// Of a unit's weights: a half is 64 of K.
constexpr int UnitHalfBytes(WeightCode code) { return kUnitWeights * PackedBlock{code}.line_bytes(); }
// A unit's scales in a stage, and what of them a stage sets aside.
constexpr int UnitScaleBytes(WeightCode code) {
  return code == WeightCode::kBF16 ? 0 : code == WeightCode::kFp8 ? 16 : kUnitWeights * kStageK / 32;
}
// A stage: weights, token rows, scales.
constexpr int StreamStageBytes(WeightCode code, int tokens) {
  return 2 * UnitHalfBytes(code) + tokens * kStageRowBytes + (code == WeightCode::kBF16 ? 0 : 128);
}

// Codes want many warps that decode; bf16 wants few with long rings.
constexpr int StreamWarps(WeightCode code) { return code == WeightCode::kBF16 ? 8 : 16; }

// A block's shared memory: rings; barriers; addresses of token rows; where experts' units begin; shares drawn.
struct StreamShared {
  static constexpr int kBytes = 226 * 1024, kMaxStages = 12;
  int stages, stage_bytes;        // of one warp
  int barriers, addresses, starts, shares;  // offsets
  int bytes;

  constexpr StreamShared(WeightCode code, int tokens, std::int64_t positions, std::int64_t experts, int blocks) {
    const int warps = StreamWarps(code);
    const int rest = static_cast<int>(positions * 8 + (experts + 1) * 4) + (2 * blocks + 2) * 4 + warps * kMaxStages * 8;
    stage_bytes = StreamStageBytes(code, tokens);
    const int fit = (kBytes - 128 - rest) / (warps * stage_bytes);
    stages = fit < kMaxStages ? fit : kMaxStages;
    barriers = warps * stages * stage_bytes;
    addresses = barriers + warps * kMaxStages * 8;
    starts = addresses + static_cast<int>(positions) * 8;
    shares = starts + static_cast<int>(experts + 1) * 4;
    bytes = 128 + shares + (2 * blocks + 2) * 4;
  }
};

}  // namespace expertd::cuda
