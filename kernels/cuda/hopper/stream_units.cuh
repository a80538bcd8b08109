// Which units a warp takes, and how their weights and token rows come.
#pragma once

#include "kernels/cuda/hopper/stream_block.cuh"

namespace expertd::cuda {

// The token rows of a unit that a lane brings, 16 bytes of each in a step: every second row, and one of 16 chunks.
template <int kTokens>
class StreamRows {
 public:
  template <typename Block>
  __device__ void Find(const Block& block, const StreamUnit& unit) {
    rows_ = unit.rows();
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int t = Row(i) < rows_ ? Row(i) : 0;
      from_[i] = block.RowAddress(unit.phase(), unit.first + t) + threadIdx.x % 16 * 16;
    }
  }
  // Half the chunks where not `whole`. `to`: where a stage has its rows.
  __device__ void Copy(std::uint32_t to, bool valid, bool whole) {
    const int chunk = threadIdx.x % 16, half = chunk / 8;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      CopyChunk(to + (half * kTokens + Row(i)) * kFusedLine + (chunk % 8 ^ Row(i)) * 16,
                reinterpret_cast<const void*>(from_[i]), valid && Row(i) < rows_ && (half == 0 || whole));
      from_[i] += kStageRowBytes;
    }
  }

 private:
  static constexpr int kCount = kTokens / 2;
  __device__ static int Row(int i) { return threadIdx.x % 32 / 16 + 2 * i; }
  int rows_ = 0;
  std::uint64_t from_[kCount] = {};
};

// A warp's way through the units that it brings, a step of 128 of K at a time.
template <WeightCode kCode, int kTokens>
class StreamFront {
 public:
  __device__ explicit StreamFront(const StreamBlock<kCode, kTokens>& block) : block_(block), policy_(ReadOnce()) {
    const int lane = threadIdx.x % 32;
    // Of a chunk of 512 bytes: packed lines follow each other; published ones are elsewhere, and not swizzled.
    to_[0] = to_[1] = lane * 16;
    if (kCode == WeightCode::kBF16 && !block.launch().packed) {
      to_[0] = lane / 8 * kFusedLine + (lane % 8 ^ lane / 8) * 16;
      to_[1] = to_[0] ^ 64;
    }
  }

  // Whether there is another step, of the next unit if need be. Without `wait` also false while that unit's share is
  // not drawn.
  __device__ bool Ready(bool wait) { return lines_ > 0 || NextUnit(wait); }
  __device__ Phase phase() const { return phase_of_unit_; }

  // The step's weights, and with `rows` its token rows, to a stage; one group of copies.
  __device__ void Copy(std::uint32_t to, bool rows) {
    const bool whole = lines_ > 1;
    if constexpr (kCode == WeightCode::kBF16) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const unsigned char* const from = weights_ + i / 4 * half_ + i % 4 / 2 * pair_ + i % 2 * four_;
        CopyChunkOnce(to + i * 512 + to_[i % 2], from, i < 4 || whole, policy_);
      }
    } else {
      constexpr int kHalfBytes = UnitHalfBytes(kCode);
      const int lane = threadIdx.x % 32;
#pragma unroll
      for (int i = 0; i < 2 * kHalfBytes; i += 512) {
        CopyChunkOnce(to + i + lane * 16, weights_ + i / kHalfBytes * kBlock.half_bytes() + i % kHalfBytes,
                      i < kHalfBytes || whole, policy_);
      }
      CopyChunkOnce(to + kShape.scales_at() + lane * 16, scales_, lane < UnitScaleBytes(kCode) / 16, policy_);
      scales_ += kBlock.bytes();
    }
    rows_.Copy(to + kShape.rows_at(), rows, whole);
    CommitCopies();
    weights_ += step_bytes_;
    lines_ -= 2;
  }

 private:
  static constexpr StreamShape kShape = {kCode, kTokens};
  static constexpr PackedBlock kBlock = {kCode};

  __device__ bool NextUnit(bool wait) {
    while (left_ <= 0) {
      if (done_ || !NextShare(wait)) return false;
    }
    const StreamUnit& tile = block_.Tile(tile_);
    const StreamUnit unit = {tile.expert, tile.first, column_, tile.phase_and_rows | static_cast<int>(phase_)};
    __syncwarp();
    if (threadIdx.x % 32 == 0) block_.Unit(units_) = unit;
    __syncwarp();
    ++units_;
    phase_of_unit_ = phase_;
    lines_ = block_.Lines(phase_);
    FindWeights(unit);
    rows_.Find(block_, unit);
    left_ -= kShape.warps();
    column_ += kShape.warps();
    for (const int columns = block_.Columns(phase_); column_ >= columns; column_ -= columns) ++tile_;
    return true;
  }
  __device__ bool NextShare(bool wait) {
    const int share = block_.Share(shares_, wait), shares = static_cast<int>(gridDim.x);
    if (share < 0) return false;
    ++shares_;
    done_ = share >= 2 * shares;
    if (done_) return false;
    phase_ = share < shares ? Phase::kUp : Phase::kDown;
    const int columns = block_.Columns(phase_), units = block_.tiles() * columns, number = share % shares;
    const int begin = number * units / shares + threadIdx.x / 32;
    left_ = (number + 1) * units / shares - begin;
    tile_ = begin / columns, column_ = begin % columns;
    return true;
  }
  __device__ void FindWeights(const StreamUnit& unit) {
    const FusedForwardLaunch& launch = block_.launch();
    const int row = unit.column * kUnitWeights, line = row % kPackedRows, lane = threadIdx.x % 32;
    if (kCode == WeightCode::kBF16 && !launch.packed) return FindPublished(unit);
    const unsigned char* const block = PackedRows(launch, kCode, unit.phase(), unit.expert, row - line);
    weights_ = block + kBlock.scale_bytes() + line * kBlock.line_bytes() + lane * 16;
    scales_ = block + (kCode == WeightCode::kMxfp4 ? line * (kPackedK / 32) : 0) + lane * 16;
    step_bytes_ = kBlock.bytes(), half_ = kBlock.half_bytes(), pair_ = 1024, four_ = 512;
  }
  // A lane's chunk of the first of every four lines.
  __device__ void FindPublished(const StreamUnit& unit) {
    const FusedForwardLaunch& launch = block_.launch();
    const bool up = unit.phase() == Phase::kUp;
    const std::int64_t in = up ? launch.d : launch.f, rows = up ? 2 * launch.f : launch.d;
    const std::int64_t first = unit.expert * rows + unit.column * (up ? 8 : kUnitWeights);
    const int lane = threadIdx.x % 32;
    weights_ = static_cast<const unsigned char*>(up ? launch.gate_up : launch.down) + (first + lane / 8) * in * 2 +
               lane % 8 * 16;
    step_bytes_ = kStageRowBytes, half_ = kFusedLine, pair_ = (up ? launch.f : 8) * in * 2, four_ = 4 * in * 2;
  }

  const StreamBlock<kCode, kTokens>& block_;
  const std::uint64_t policy_;
  Phase phase_ = Phase::kUp, phase_of_unit_ = Phase::kUp;  // of the share; of the unit
  int shares_ = 0, units_ = 0;                             // so far
  int left_ = 0, tile_ = 0, column_ = 0;                   // of the share, in units; the next unit
  bool done_ = false;
  int lines_ = 0;  // of the unit, left
  std::uint32_t to_[2];
  const unsigned char* weights_ = nullptr;  // the lane's
  const unsigned char* scales_ = nullptr;
  std::int64_t step_bytes_ = 0, half_ = 0, pair_ = 0, four_ = 0;  // to the next step, 64 of K, eight lines, four lines
  StreamRows<kTokens> rows_;
};

}  // namespace expertd::cuda
