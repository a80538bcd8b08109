// How the fused forward is divided: plain arithmetic, tested without a GPU.
//
// A tile is `weights` rows of an expert's weights by up to `tokens` of its token rows. Weights stand on wgmma's M side,
// token rows on its N side, which may be any multiple of 8: a tile costs what its rows cost. Steps of 64 along K in one
// order for every tile, so the choice changes no bit and may follow the batch.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

inline constexpr int kFusedStep = 64;              // of K: a line of 128 bytes
inline constexpr int kFusedLine = kFusedStep * 2;  // bytes
inline constexpr int kFusedMaxExperts = 1024;

// Each of two warpgroups multiplies `blocks` x 64 weight rows. A tile either gathers the first product's rows from
// where they lie, or wants them beside each other.
struct FusedTile {
  int blocks, tokens, stages;
  bool gathers;
  constexpr int weights() const { return blocks * 128; }
  constexpr int weight_bytes() const { return weights() * kFusedLine; }
  constexpr int stage_bytes() const { return weight_bytes() + tokens * kFusedLine; }
};

enum class FusedTileId : std::uint8_t { kFew, kSome, kMany, kManyInPlace };
// Few and some rows an expert: reading weights is the limit, and some 190 KiB of them are in flight on each
// multiprocessor. Many: the tensor cores are; 256 x 160 sums need few bytes from L2 for a product. They are faster
// where rows need not be gathered, but narrow experts do not earn back what bringing rows beside each other costs.
inline constexpr FusedTile kFusedTiles[] = {{1, 16, 12, true}, {1, 64, 9, true}, {2, 160, 4, false}, {2, 160, 4, true}};
constexpr const FusedTile& ShapeOf(FusedTileId tile) { return kFusedTiles[static_cast<int>(tile)]; }

// Results on their way out: up to 128 features of every token row, padded so that stmatrix meets each bank once. They
// take the place of a step in the ring.
inline constexpr int kStagedFeatures = 128, kStagedPitch = kStagedFeatures * 2 + 16;
constexpr bool StageHoldsResults(const FusedTile& tile) { return tile.tokens * kStagedPitch <= tile.stage_bytes(); }
static_assert(StageHoldsResults(kFusedTiles[0]) && StageHoldsResults(kFusedTiles[1]) &&
              StageHoldsResults(kFusedTiles[2]));  // the last has the same sizes

// What the block's warps tell each other: work items, barriers, where each expert's tiles begin.
inline constexpr int kWorkRing = 4, kWorkItemBytes = 24;
constexpr int FusedSharedBytes(const FusedTile& tile, std::int64_t experts) {
  const int barriers = (4 * tile.stages + 2 * kWorkRing) * 8;
  return 1024 + tile.stages * tile.stage_bytes() + kWorkRing * kWorkItemBytes + barriers +
         static_cast<int>(experts + 1) * 4;
}

// By the rows that an expert gets if routing is even.
constexpr FusedTileId ChooseFusedTile(std::int64_t positions, std::int64_t experts, std::int64_t f) {
  constexpr std::int64_t kWide = 1280;  // measured: 1024 gathers, 1536 does not
  const std::int64_t rows = CeilDiv(positions, experts);
  if (rows <= 48) return rows <= 10 ? FusedTileId::kFew : FusedTileId::kSome;
  return f < kWide ? FusedTileId::kManyInPlace : FusedTileId::kMany;
}

// An upper bound of the token tiles of all experts.
constexpr std::int64_t MaxTokenTiles(const FusedTile& tile, std::int64_t positions, std::int64_t experts) {
  return positions / tile.tokens + (positions < experts ? positions : experts);
}

// What keeps such experts from the fused kernel, as people read it; null: nothing.
constexpr const char* FusedObstacle(WeightCode weights, std::int64_t d, std::int64_t f, std::int64_t experts) {
  if (weights != WeightCode::kBF16) return "weights are not bf16";
  if (d % kFusedStep != 0) return "hidden size is no multiple of 64";
  if (f % kFusedStep != 0) return "intermediate size is no multiple of 64";
  return experts > kFusedMaxExperts ? "more than 1024 experts" : nullptr;
}

// Hopper, bf16 rows and no obstacle. Decided by device and shape, never by N.
constexpr bool UsesFused(const DeviceLimits& device, Element element, WeightCode weights, std::int64_t d,
                         std::int64_t f, std::int64_t experts) {
  return device.compute_capability == 90 && element == Element::kBF16 &&
         FusedObstacle(weights, d, f, experts) == nullptr;
}

}  // namespace expertd::cuda
