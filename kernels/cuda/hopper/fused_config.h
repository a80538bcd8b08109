// How the fused forward is divided: plain arithmetic, tested without a GPU.
//
// A tile is `weights` rows of an expert's weights by up to `tokens` of its token rows. Weights stand on wgmma's M side,
// token rows on its N side, which may be any multiple of 8: a tile costs what its rows cost. Steps of 64 along K in one
// order for every tile, so the choice changes no bit and may follow the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/hopper/packed_weights.h"
#include "kernels/cuda/hopper/stream_config.h"
#include "kernels/cuda/plain.h"

namespace expertd::cuda {

inline constexpr int kFusedLineK = 64;              // of K, of a token row: what one line of 128 bytes holds
inline constexpr int kFusedLine = kFusedLineK * 2;  // bytes
inline constexpr int kFusedMaxExperts = 1024;

// Each of `groups` warpgroups multiplies `blocks` x 64 weight rows. A stage is a line of K, or two where codes are
// decoded.
struct FusedTile {
  int blocks, tokens, stages;
  WeightCode weights_code = WeightCode::kBF16;
  int groups = 2;
  constexpr bool streams() const { return stages == 0; }  // the kernel of stream_config.h, which has its own
  constexpr bool codes() const { return weights_code != WeightCode::kBF16; }
  constexpr bool fp8_rows() const { return weights_code == WeightCode::kFp8Both; }
  constexpr bool decodes() const { return codes() && !fp8_rows(); }
  constexpr int line_k() const { return fp8_rows() ? kPackedK : kFusedLineK; }  // of a token row's line
  constexpr int lines() const { return decodes() ? kPackedK / kFusedLineK : 1; }
  // Lines of a token row of `width` elements; of e4m3, the last one may be filled up with zeros.
  constexpr std::int64_t row_lines(std::int64_t width) const { return CeilDiv(width, line_k()); }
  constexpr int block_weights() const { return groups * 64; }
  constexpr int weights() const { return blocks * block_weights(); }
  // Copies that bring a step's weights.
  constexpr int pieces() const { return codes() ? weights() / kPackedRows : blocks; }
  // Whole kilobytes, as lines that wgmma reads want it: token rows, and the next piece of kFp8Both.
  static constexpr int Kilobytes(int bytes) { return static_cast<int>(CeilDiv(bytes, 1024)) * 1024; }
  constexpr int piece_bytes() const {
    const int bytes = PackedBlock{weights_code}.bytes();
    return fp8_rows() ? Kilobytes(bytes) : bytes;
  }
  constexpr int weight_bytes() const { return codes() ? Kilobytes(pieces() * piece_bytes()) : weights() * kFusedLine; }
  // Scales of token rows follow those of the first piece, in what its last kilobyte leaves.
  constexpr int row_scales_at() const { return PackedBlock{weights_code}.bytes(); }
  constexpr int token_line_bytes() const { return tokens * kFusedLine; }
  constexpr int stage_bytes() const { return weight_bytes() + lines() * token_line_bytes(); }
};

enum class FusedTileId : std::uint8_t {
  kSome,
  kMany,
  kFewFp8,
  kSomeFp8,
  kManyFp8,
  kFewMxfp4,
  kSomeMxfp4,
  kManyMxfp4,
  kSomeFp8Both,
  kManyFp8Both,
  kStream,
  kStreamFp8,
  kStreamMxfp4
};
// Many: 256 x 160 sums need few bytes from L2 for a product, and 128 KiB of weights are in flight on each
// multiprocessor, enough for few rows too. Some: for experts so few that tiles of 256 weight rows cannot be shared out
// evenly. Decoding has tiles of its own for few rows, and wants four warpgroups then, to keep the arithmetic busy.
// Codes are decoded for every token tile; the sums of e4m3 are kept twice, without and with scales. With rows of e4m3 a
// tile has 256 weight rows whatever its tokens: its 128 results of the first product have one scale.
inline constexpr FusedTile kFusedTiles[] = {{1, 64, 9},
                                            {2, 160, 4},
                                            {1, 16, 5, WeightCode::kFp8, 4},
                                            {1, 64, 6, WeightCode::kFp8},
                                            {1, 128, 4, WeightCode::kFp8},
                                            {1, 16, 10, WeightCode::kMxfp4, 4},
                                            {1, 64, 6, WeightCode::kMxfp4, 4},
                                            {1, 128, 5, WeightCode::kMxfp4},
                                            {2, 64, 5, WeightCode::kFp8Both},
                                            {2, 128, 4, WeightCode::kFp8Both},
                                            {1, kUnitTokens, 0},
                                            {1, kUnitTokens, 0, WeightCode::kFp8},
                                            {1, kUnitTokens, 0, WeightCode::kMxfp4}};
constexpr const FusedTile& ShapeOf(FusedTileId tile) { return kFusedTiles[static_cast<int>(tile)]; }

// What the block's warps tell each other: work items, barriers, where each expert's tiles begin.
inline constexpr int kWorkRing = 4, kWorkItemBytes = 24, kStoredBarriers = 2 * kWorkRing;
constexpr int FusedBarriers(const FusedTile& tile) { return 2 * tile.stages + kStoredBarriers + 2 * kWorkRing; }
// All but the lines of results; the ring wants to begin at a multiple of 1024.
constexpr int FusedFixedBytes(const FusedTile& tile, std::int64_t experts) {
  return 1024 + tile.stages * tile.stage_bytes() + kWorkRing * kWorkItemBytes + FusedBarriers(tile) * 8 +
         static_cast<int>(experts + 1) * 4;
}

// Results on their way from registers to memory: each warpgroup has lines of 64 features for some tokens at once,
// padded so that stmatrix meets each bank once. As many tokens as the ring leaves room for (and 128 bytes of others).
inline constexpr int kStagedPitch = 64 * 2 + 16;
// Results that are quantised: lines of 128 features, of all warpgroups together, in the same place.
inline constexpr int kQuantisedPitch = 128 * 2 + 16;
static_assert(kQuantisedPitch <= 2 * kStagedPitch);
constexpr int StagedTokens(const FusedTile& tile) {
  constexpr int kMost = 64;
  const int room = kMostSharedBytes - 128 - FusedFixedBytes(tile, kFusedMaxExperts);
  return std::min({room / (tile.groups * kStagedPitch) / 16 * 16, tile.tokens, kMost});
}
constexpr int StagedBytes(const FusedTile& tile) { return tile.groups * StagedTokens(tile) * kStagedPitch; }

static_assert([] {
  for (const FusedTile& tile : kFusedTiles) {
    if (tile.streams()) continue;
    if (StagedTokens(tile) < 16 || StagedBytes(tile) < (kFusedMaxExperts + 1) * 4) return false;
    if (tile.fp8_rows() && tile.row_scales_at() + tile.tokens * 4 > tile.piece_bytes()) return false;
    if (tile.fp8_rows() && tile.weights() != 2 * kPackedK) return false;
  }
  return true;
}());

constexpr int FusedSharedBytes(const FusedTile& tile, std::int64_t experts) {
  return FusedFixedBytes(tile, experts) + StagedBytes(tile);
}

// Up to so many rows an expert, tiles of few or some.
inline constexpr std::int64_t kFewRows = 10, kSomeRows = 48, kSomeMxfp4Rows = 128;
// Of bf16 weights: kMany, unless that would be less than two tiles of the (second) product for each of the 132
// multiprocessors of a Hopper device.
constexpr FusedTileId SomeOrMany(std::int64_t positions, std::int64_t experts, std::int64_t out_features) {
  const std::int64_t tiles =
      std::min(positions, experts) * CeilDiv(out_features, ShapeOf(FusedTileId::kMany).weights());
  const bool some = CeilDiv(positions, experts) <= kSomeRows && tiles < 2 * 132;
  return some ? FusedTileId::kSome : FusedTileId::kMany;
}

// What the choice of a tile depends on.
struct FusedWork {
  std::int64_t positions, experts, d, f;
  WeightCode weights = WeightCode::kBF16;
};
constexpr FusedTileId ChooseFusedTile(const FusedWork& work) {
  using enum FusedTileId;
  const bool streams = Streams(work.positions, 3 * work.d * work.f);
  const std::int64_t rows = CeilDiv(work.positions, work.experts);  // of an expert, if routing is even
  switch (work.weights) {
    case WeightCode::kFp8:
      return streams ? kStreamFp8 : rows <= kFewRows ? kFewFp8 : rows <= kSomeRows ? kSomeFp8 : kManyFp8;
    case WeightCode::kMxfp4:
      return streams ? kStreamMxfp4 : rows <= kFewRows ? kFewMxfp4 : rows <= kSomeMxfp4Rows ? kSomeMxfp4 : kManyMxfp4;
    case WeightCode::kFp8Both:
      return rows <= kSomeRows ? kSomeFp8Both : kManyFp8Both;
    default:
      return streams ? kStream : SomeOrMany(work.positions, work.experts, work.d);
  }
}

// An upper bound of the token tiles of all experts.
constexpr std::int64_t MaxTokenTiles(const FusedTile& tile, std::int64_t positions, std::int64_t experts) {
  return positions / tile.tokens + (positions < experts ? positions : experts);
}

// What keeps such experts from the fused kernel, as people read it; null: nothing.
constexpr const char* FusedObstacle(WeightCode weights, std::int64_t d, std::int64_t f, std::int64_t experts) {
  if (weights != WeightCode::kBF16 && weights != WeightCode::kFp8 && weights != WeightCode::kMxfp4 &&
      weights != WeightCode::kFp8Both) {
    return "weights are not bf16, fp8 or mxfp4";
  }
  if (d % kFusedLineK != 0) return "hidden size is no multiple of 64";
  if (f % kFusedLineK != 0) return "intermediate size is no multiple of 64";
  return experts > kFusedMaxExperts ? "more than 1024 experts" : nullptr;
}

// Hopper, bf16 rows and no obstacle. Decided by device and shape, never by N.
constexpr bool UsesFused(const DeviceLimits& device, Element element, WeightCode weights, std::int64_t d,
                         std::int64_t f, std::int64_t experts) {
  return device.compute_capability == 90 && element == Element::kBF16 &&
         FusedObstacle(weights, d, f, experts) == nullptr;
}

// The same for one product alone.
constexpr bool UsesHopperProduct(const DeviceLimits& device, Element element, WeightCode weights, std::int64_t in,
                                 std::int64_t out_features, std::int64_t experts) {
  return weights == WeightCode::kBF16 && UsesFused(device, element, weights, out_features, in, experts);
}

}  // namespace expertd::cuda
