// Which tile a grouped GEMM runs with: plain arithmetic, tested without a GPU.
//
// Weights stand on the M side of the tensor-core product and token rows on its N side, whose width may be as small as
// 8: a tile wastes little when experts have few rows. Every tile adds along K in the same order (steps of 16, one
// accumulator), so the choice changes no bit and may follow the batch freely.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

enum class GemmTile : std::uint8_t { k64x8, k64x32, k128x64, k128x128, k256x128 };  // weight rows x token rows

struct GemmTileShape {
  int weights, tokens;
  int warps_m, warps_n;  // how the warps of a block divide the tile
  int stages;
  int blocks;  // that a multiprocessor holds
};
// A stage holds 64 elements of K: (weights + tokens) * 128 bytes. Small tiles run where memory is the limit, so a
// multiprocessor has up to 200 KiB of them in flight; large ones are there for the tensor cores.
inline constexpr GemmTileShape kGemmTiles[] = {
    {64, 8, 2, 1, 8, 3}, {64, 32, 2, 1, 6, 3}, {128, 64, 2, 2, 4, 2}, {128, 128, 2, 2, 3, 2}, {256, 128, 4, 2, 4, 1},
};
inline constexpr int kGemmK = 64;
inline constexpr int kMaxGemmExperts = 4096;

constexpr const GemmTileShape& ShapeOf(GemmTile tile) { return kGemmTiles[static_cast<int>(tile)]; }
// Bytes that a weight row's codes, and their scales where each thread brings its own, take of a stage.
constexpr int StageCodeBytes(WeightCode code) {
  return code == WeightCode::kFp8 ? kGemmK : code == WeightCode::kMxfp4 ? kGemmK / 2 + kGemmK / 8 : kGemmK * 2;
}
constexpr bool IsQuantised(WeightCode code) { return code == WeightCode::kFp8 || code == WeightCode::kMxfp4; }

// Of a block: the stages; two stages' weights as bf16 where they come as codes; where each expert's tiles begin.
constexpr int GemmSharedBytes(GemmTile tile, std::int64_t experts, WeightCode code = WeightCode::kBF16) {
  const GemmTileShape& shape = ShapeOf(tile);
  const int stage = shape.weights * StageCodeBytes(code) + shape.tokens * kGemmK * 2;
  const int decoded = IsQuantised(code) ? 2 * shape.weights * kGemmK * 2 : 0;
  return shape.stages * stage + decoded + static_cast<int>((experts + 1) * 4);
}

// By the rows that an expert gets if routing is even: an uneven one takes more tiles, not a different result. Devices
// with less shared memory than a tile wants take the next smaller one.
// Codes stop at 128 x 64: there the sums of fp8, kept twice (without and with scales), still fit the registers.
constexpr GemmTile ChooseGemmTile(std::int64_t positions, std::int64_t experts, const DeviceLimits& device,
                                  WeightCode code = WeightCode::kBF16) {
  const std::int64_t rows = CeilDiv(positions, experts);
  int tile = static_cast<int>(rows <= 4                         ? GemmTile::k64x8
                              : rows <= 16                      ? GemmTile::k64x32
                              : rows <= 48 || IsQuantised(code) ? GemmTile::k128x64
                                                                : GemmTile::k256x128);
  while (tile > 0 && GemmSharedBytes(static_cast<GemmTile>(tile), experts, code) > device.shared_bytes_per_block)
    --tile;
  return static_cast<GemmTile>(tile);
}

// Blocks of the persistent grid: as many as are resident, fewer when there cannot be that many tiles.
constexpr int GemmBlocks(GemmTile tile, std::int64_t positions, std::int64_t experts, std::int64_t out_features,
                         const DeviceLimits& device) {
  const GemmTileShape& shape = ShapeOf(tile);
  const std::int64_t hit = positions < experts ? positions : experts;
  const std::int64_t tiles = (positions / shape.tokens + hit) * CeilDiv(out_features, shape.weights);
  const std::int64_t resident = std::int64_t{device.multiprocessors} * shape.blocks;
  return static_cast<int>(tiles < resident ? tiles : resident);
}

// The plain kernel's blocks of 256 threads.
constexpr int PlainGemmBlocks(const DeviceLimits& device) { return device.multiprocessors * 4; }

// Tensor cores take bf16 rows of whole 16-byte vectors. Decided by types and shape alone: the other kernel's bits
// differ.
constexpr bool UsesTensorCores(Element element, WeightCode weights, std::int64_t in) {
  return element == Element::kBF16 && (weights == WeightCode::kBF16 || IsQuantised(weights)) &&
         in % VectorElements(Element::kBF16) == 0;
}

}  // namespace expertd::cuda
