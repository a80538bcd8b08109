// Fills the stages: one thread brings weights, two warps bring token rows.
//
// The first product gathers its rows, 16 bytes a copy, from where they lie (TMA has no gather on this chip); the second
// product's come as boxes. A box may reach into the next expert's rows, and lines past the tile's rows may hold what an
// earlier tile left: neither matters, because a column of the product depends on its own token row alone and columns
// past the tile's rows are not stored.
#pragma once

#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/work.cuh"

namespace expertd::cuda {

struct FusedMaps {
  CUtensorMap gate_up;  // [experts, f / 8, half, 8, d]: eight gate rows, then the eight up rows that belong to them
  CUtensorMap down;     // [experts, d, f]
  CUtensorMap hidden;   // [1, positions, f]
};
inline constexpr int kHiddenBox = 16;  // lines that one copy of `hidden` brings

// Waits for the first product of a token tile, whose results the second one copies.
inline __device__ void AwaitUp(const Counters& counters, int token_tile, int tiles) {
  while (LoadAcquire(counters.up_done(token_tile)) < tiles) {
  }
  FenceAsyncGlobal();
}
// Where the packed weights of rows `row` and on of an expert begin; past the last tile, of some rows that are there.
inline __device__ const unsigned char* PackedRows(const FusedForwardLaunch& launch, WeightCode code, Phase phase,
                                                  int expert, int row) {
  const PackedBlock block = {code};
  const bool up = phase == Phase::kUp;
  const std::int64_t rows = up ? 2 * launch.f : launch.d, in = up ? launch.d : launch.f;
  const std::int64_t tile = min(std::int64_t{row / kPackedRows}, PackedTiles(rows) - 1);
  const auto* const weights = static_cast<const unsigned char*>(up ? launch.gate_up : launch.down);
  return weights + expert * PackedBytes(code, rows, in) + tile * PackedSteps(in) * block.bytes() +
         row % kPackedRows * block.line_bytes();
}

// The weights of a tile.
template <FusedTileId kId>
class TileWeights {
 public:
  __device__ TileWeights(const FusedForwardLaunch& launch, const WorkItem& item)
      : phase_(item.phase), expert_(item.expert), row_(item.column * kTile.weights()) {
    if (!launch.packed) return;
#pragma unroll
    for (int piece = 0; piece < kTile.pieces(); ++piece) {
      packed_[piece] = PackedRows(launch, kTile.weights_code, phase_, expert_, Row(piece));
    }
  }

  // Brings a step, `lines` lines of K, to the stage at `to`.
  __device__ void CopyStep(const FusedForwardLaunch& launch, const FusedMaps& maps, std::uint32_t to, int step,
                           int lines, const Barrier& full) const {
    if constexpr (kTile.codes()) {
      const int bytes = kBlock.bytes() - (kTile.lines() - lines) * kBlock.half_bytes();
      full.ArriveAndExpect(kTile.pieces() * bytes);
#pragma unroll
      for (int piece = 0; piece < kTile.pieces(); ++piece) {
        CopyBulk(to + piece * kTile.piece_bytes(), packed_[piece] + std::int64_t{step} * kBlock.bytes(), bytes, full);
      }
    } else {
      full.ArriveAndExpect(kTile.weight_bytes());
#pragma unroll
      for (int piece = 0; piece < kTile.pieces(); ++piece) {
        CopyPiece(launch, maps, to + piece * kPieceBytes, piece, step, full);
      }
    }
  }

 private:
  static constexpr FusedTile kTile = ShapeOf(kId);
  static constexpr PackedBlock kBlock = {kTile.weights_code};
  static constexpr int kPieceRows = kTile.weights() / kTile.pieces(), kPieceBytes = kPieceRows * kFusedLine;
  __device__ int Row(int piece) const { return row_ + piece * kPieceRows; }

  __device__ void CopyPiece(const FusedForwardLaunch& launch, const FusedMaps& maps, std::uint32_t to, int piece,
                            int step, const Barrier& full) const {
    if (launch.packed) {
      CopyBulk(to, packed_[piece] + std::int64_t{step} * kBlock.half_bytes(), kPieceBytes, full);
    } else if (phase_ == Phase::kUp) {
      CopyBox(to, maps.gate_up, step * kFusedLineK, 0, 0, Row(piece) / 16, expert_, full);
    } else {
      CopyBox(to, maps.down, step * kFusedLineK, Row(piece), expert_, full);
    }
  }

  const Phase phase_;
  const int expert_, row_;
  const unsigned char* packed_[kTile.pieces()];
};

// Draws tickets, tells the block, and brings the weights of its tiles; by one thread.
template <FusedTileId kId>
__device__ void BringWeights(const FusedForwardLaunch& launch, const FusedMaps& maps, const FusedShared<kId>& shared,
                             Work work, WorkRing<kRingReaders<kId>> ring) {
  constexpr int kLines = ShapeOf(kId).lines();
  const Counters counters = {launch.counters};
  bool waits = launch.finds_offsets();  // for the kernel before, after the first tile
  StageWalk<ShapeOf(kId).stages> walk;
  // Tiles of one product wait for nobody, so they can be shared out beforehand.
  int next = blockIdx.x;
  const auto draw = [&] {
    if (!launch.one_product()) return atomicAdd(counters.ticket(), 1);
    const int ticket = next;
    next += gridDim.x;
    return ticket;
  };
  int ticket = draw();
  for (;;) {
    const WorkItem item = work.At(ticket);
    ring.Push(item);
    if (item.phase == Phase::kDone) return;
    ticket = draw();  // its way to memory and back overlaps this item's copies
    const TileWeights<kId> weights(launch, item);
    const int lines = LinesOf<kId>(launch, item.phase);
    for (int line = 0, step = 0; line < lines; line += kLines, ++step) {
      shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
      weights.CopyStep(launch, maps, shared.Weights(walk.stage()), step, min(kLines, lines - line),
                       shared.Full(walk.stage()));
      walk.Advance();
    }
    if (waits) {
      WaitForPrevious();
      LaunchNext();  // not before: the next kernel may read maps while this one runs
      work.ReadFrom(launch.offsets);
      waits = false;
    }
  }
}

// The row of a position, for a product that gathers. Divides once when it is made: a thread looks up to twenty rows of
// a tile up, and their divisions would hold the tile's first copies up.
class RowOfPosition {
 public:
  __device__ explicit RowOfPosition(const FusedForwardLaunch& launch)
      : slots_(launch.sorted_slots), divisor_(launch.rows_divisor), inverse_(0xffffffffu / divisor_) {}
  __device__ unsigned operator()(int position) const {
    const auto slot = static_cast<unsigned>(max(slots_[position], 0));
    const unsigned row = __umulhi(slot, inverse_);  // or one less
    return row + (slot - row * divisor_ >= divisor_);
  }

 private:
  const std::int32_t* const slots_;
  const unsigned divisor_, inverse_;
};

// The rows of a tile that one thread brings, 16 bytes of each in a line: every eighth row, and every eighth chunk. What
// a stage costs here counts: these two warps compete with those that decode.
template <FusedTileId kId>
class GatheredRows {
 public:
  __device__ GatheredRows(const RowOfPosition& row_of, int thread)
      : row_of_(row_of),
        first_(thread / 8),
        place_(first_ * kFusedLine + (thread % 8 ^ first_) * 16),
        chunk_(thread % 8) {}

  __device__ void Find(const FusedForwardLaunch& launch, const WorkItem& item) {
    rows_ = item.rows;
    const std::int64_t row_bytes = std::int64_t{LinesOf<kId>(launch, item.phase)} * kFusedLine;
    const auto* const chunks = static_cast<const unsigned char*>(launch.rows) + chunk_ * 16;
    // Past the tile, once more its last row: loads behind branches would wait for each other.
#pragma unroll
    for (int i = 0; i < kRows; ++i) from_[i] = chunks + row_of_(item.first + min(Row(i), rows_ - 1)) * row_bytes;
  }
  // The next kLines lines' bytes to a stage's lines, the first of which is at `to`.
  template <int kLines>
  __device__ void CopyLines(std::uint32_t to) {
    to += place_;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (Row(i) < rows_) {
#pragma unroll
        for (int line = 0; line < kLines; ++line) {
          CopyChunk(to + line * ShapeOf(kId).token_line_bytes() + i * kStride * kFusedLine,
                    from_[i] + line * kFusedLine);
        }
      }
      from_[i] += kLines * kFusedLine;
    }
  }

 private:
  static constexpr int kStride = kRowsThreads / 8, kRows = ShapeOf(kId).tokens / kStride;
  static_assert(kStride == 8);  // so that all of a thread's rows have one swizzle
  __device__ int Row(int i) const { return first_ + i * kStride; }

  const RowOfPosition& row_of_;
  const int first_, place_, chunk_;
  int rows_ = 0;
  const unsigned char* from_[kRows];
};

// The scales of a tile's token rows, where those are e4m3: one of each row for a stage.
template <FusedTileId kId>
class RowScales {
 public:
  __device__ RowScales(const RowOfPosition& row_of, int thread) : row_of_(row_of), thread_(thread) {}

  __device__ void Find(const FusedForwardLaunch& launch, const WorkItem& item) {
    const bool up = item.phase == Phase::kUp;
    rows_ = item.rows;
    pitch_ = up ? launch.row_scale_pitch : launch.positions;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (Row(i) >= rows_) continue;
      const int position = item.first + Row(i);
      from_[i] = up ? launch.row_scales + row_of_(position) : launch.hidden_scales + position;
    }
  }
  __device__ void CopyStep(std::uint32_t to) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (Row(i) < rows_) CopyAsyncSmall<4>(to + Row(i) * 4, from_[i], true);
      from_[i] += pitch_;
    }
  }

 private:
  static constexpr FusedTile kTile = ShapeOf(kId);
  static constexpr int kRows = (kTile.tokens + kRowsThreads - 1) / kRowsThreads;
  __device__ int Row(int i) const { return thread_ + i * kRowsThreads; }

  const RowOfPosition& row_of_;
  const int thread_;
  int rows_ = 0;
  std::int64_t pitch_ = 0;
  const float* from_[kRows];
};

// `lines` lines, from `first_line` on, of the rows that the first product left beside each other; by one thread.
template <FusedTileId kId>
__device__ void BoxesStep(const CUtensorMap& map, const FusedShared<kId>& shared, const WorkItem& item, int stage,
                          int first_line, int lines) {
  const Barrier full = shared.Full(stage);
  const int boxes = (item.rows + kHiddenBox - 1) / kHiddenBox;
  full.Expect(lines * boxes * kHiddenBox * kFusedLine);
  for (int line = 0; line < lines; ++line) {
    for (int box = 0; box < boxes; ++box) {
      CopyBox(shared.Rows(stage, line) + box * kHiddenBox * kFusedLine, map, (first_line + line) * kFusedLineK,
              item.first + box * kHiddenBox, 0, full);
    }
  }
}

template <FusedTileId kId>
__device__ void BringRows(const FusedForwardLaunch& launch, const FusedMaps& maps, const FusedShared<kId>& shared,
                          const Work& work, WorkRing<kRingReaders<kId>> ring) {
  constexpr FusedTile kTile = ShapeOf(kId);
  constexpr int kLines = kTile.lines();
  const Counters counters = {launch.counters};
  const int thread = threadIdx.x - kRowsWarp<kId> * 32;
  StageWalk<kTile.stages> walk;
  const RowOfPosition row_of(launch);
  if (launch.finds_offsets()) WaitForPrevious();
  GatheredRows<kId> gathered(row_of, thread);
  RowScales<kId> scales(row_of, thread);
  const auto arrive = [&]<bool kCopies>() {
    if constexpr (ShapeOf(kId).fp8_rows()) scales.CopyStep(shared.RowScales(walk.stage()));
    if constexpr (kCopies || ShapeOf(kId).fp8_rows()) {
      ArriveWhenCopied(shared.Full(walk.stage()));
    } else {
      shared.Full(walk.stage()).Arrive();
    }
    walk.Advance();
  };
  for (;;) {
    const WorkItem item = ring.Pop();
    if (item.phase == Phase::kDone) return;
    const int lines = LinesOf<kId>(launch, item.phase);
    const bool up = item.phase == Phase::kUp;
    if (!up && !launch.one_product() && (kTile.fp8_rows() || thread == 0)) {
      AwaitUp(counters, item.token_tile, work.up_tiles());
    }
    if constexpr (kTile.fp8_rows()) scales.Find(launch, item);
    if (launch.gathers(up)) {
      gathered.Find(launch, item);
      const auto gather = [&]<int kCount>() {
        shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
        gathered.template CopyLines<kCount>(shared.Rows(walk.stage()));
        arrive.template operator()<true>();
      };
#pragma unroll 1
      for (int step = 0; step < lines / kLines; ++step) gather.template operator()<kLines>();
      if (lines % kLines != 0) gather.template operator()<1>();
    } else {
#pragma unroll 1
      for (int line = 0; line < lines; line += kLines) {
        shared.Empty(walk.stage()).Wait(walk.parity() ^ 1);
        if (thread == 0) {
          BoxesStep(maps.hidden, shared, item, walk.stage(), line, min(kLines, lines - line));
        }
        arrive.template operator()<false>();
      }
    }
  }
}

}  // namespace expertd::cuda
