// Which units a warp takes, and how their weights and token rows come.
#pragma once

#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/hopper/producer.cuh"
#include "kernels/cuda/hopper/stream_config.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

struct alignas(16) StreamUnit {
  int expert, first, column;  // first: position of the first token row
  int phase_and_rows;
  __device__ Phase phase() const { return static_cast<Phase>(phase_and_rows & 1); }
  __device__ int rows() const { return phase_and_rows >> 1; }
};

// What a block's warps share: a launch's token tiles, the addresses of their rows, the shares that the block has drawn.
template <WeightCode kCode, int kTokens>
class StreamBlock {
 public:
  static constexpr StreamShape kShape = {kCode, kTokens};
  static constexpr int kThreads = kShape.warps() * 32;

  __device__ StreamBlock(const FusedForwardLaunch& launch, unsigned char* memory)
      : launch_(launch),
        rings_(memory + (128 - SharedAddress(memory) % 128) % 128),
        tables_(rings_ + kShape.warps() * kShape.stages() * kShape.stage_bytes()),
        at_(kShape.warps(), launch.positions, launch.experts, static_cast<int>(gridDim.x)) {}

  // By all threads.
  __device__ void Prepare() {
    for (int i = threadIdx.x; i < 2 * gridDim.x + 2; i += kThreads) Shares()[i] = -1;
    WaitForPrevious();
    LaunchNext();
    for (int i = threadIdx.x; i < launch_.positions; i += kThreads) {
      const unsigned row = unsigned(max(launch_.sorted_slots[i], 0)) / unsigned(launch_.rows_divisor);
      Addresses()[i] = launch_.row_addresses != nullptr
                           ? launch_.row_addresses[row]
                           : reinterpret_cast<std::uint64_t>(launch_.rows) + row * launch_.d * 2;
    }
    const int experts = static_cast<int>(launch_.experts);
    auto* const starts = reinterpret_cast<std::int32_t*>(tables_ + at_.starts);
    TileSchedule tiles;
    tiles.Build<kThreads>(launch_.offsets, experts, kTokens, 1, starts);
    for (int e = threadIdx.x; e < experts; e += kThreads) {
      for (int tile = starts[e]; tile < starts[e + 1]; ++tile) {
        const int first = launch_.offsets[e] + (tile - starts[e]) * kTokens;
        Tiles()[tile] = {e, first, 0, min(kTokens, launch_.offsets[e + 1] - first) << 1};
      }
    }
    count_ = starts[experts];
    __syncthreads();
  }

  __device__ const FusedForwardLaunch& launch() const { return launch_; }
  __device__ int tiles() const { return count_; }
  __device__ const StreamUnit& Tile(int index) const { return Tiles()[index]; }
  // Units of a token tile.
  __device__ int Columns(Phase phase) const {
    return static_cast<int>(phase == Phase::kUp ? 2 * launch_.f : launch_.d) / kUnitWeights;
  }
  __device__ int Lines(Phase phase) const { return LinesOf(launch_, phase); }
  // The warp's.
  __device__ std::uint32_t Stage(int stage) const {
    return SharedAddress(rings_) + (threadIdx.x / 32 * kShape.stages() + stage) * kShape.stage_bytes();
  }
  __device__ StreamUnit& Unit(int number) const {
    return reinterpret_cast<StreamUnit*>(tables_ + at_.units)[threadIdx.x / 32 * kUnitRing + number % kUnitRing];
  }

  // The block's share number `index`, -1 while it is not drawn. The first warp draws it; by all lanes.
  __device__ int Share(int index, bool wait) const {
    volatile int* const share = Shares() + index;
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0 && *share < 0) *share = atomicAdd(launch_.counters, 1);
      __syncwarp();
    }
    while (wait && *share < 0) __nanosleep(50);
    return *share;
  }

  // A unit of the first product is stored.
  __device__ void TellUp() const {
    __threadfence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) atomicAdd(launch_.counters + 1, 1);
  }
  // Waits for all of the first product. The first warp asks memory, the others ask it.
  __device__ void AwaitUp() const {
    volatile int* const told = Shares() + 2 * gridDim.x + 1;
    if (threadIdx.x < 32) {
      const int units = tiles() * Columns(Phase::kUp);
      while (LoadAcquire(launch_.counters + 1) < units) {
      }
      if (threadIdx.x == 0) *told = 1;
    } else {
      while (*told < 0) __nanosleep(20);
    }
    __threadfence_block();
    __syncwarp();
  }

  // Token rows of a unit's step to a stage.
  __device__ void CopyRows(const StreamUnit& unit, int step, std::uint32_t stage) const {
    const int chunk = threadIdx.x % 16, half = chunk / 8;
    if (2 * step + half >= Lines(unit.phase())) return;
    for (int t = threadIdx.x % 32 / 16; t < unit.rows(); t += 2) {
      const std::uint64_t row = unit.phase() == Phase::kUp ? Addresses()[unit.first + t]
                                                           : reinterpret_cast<std::uint64_t>(launch_.hidden) +
                                                                 std::int64_t{unit.first + t} * launch_.f * 2;
      CopyChunk(stage + kShape.rows_at() + (half * kTokens + t) * kFusedLine + (chunk % 8 ^ t) * 16,
                reinterpret_cast<const unsigned char*>(row) + step * kStageRowBytes + chunk * 16);
    }
  }

 private:
  __device__ StreamUnit* Tiles() const { return reinterpret_cast<StreamUnit*>(tables_); }
  __device__ std::uint64_t* Addresses() const { return reinterpret_cast<std::uint64_t*>(tables_ + at_.addresses); }
  __device__ int* Shares() const { return reinterpret_cast<int*>(tables_ + at_.shares); }

  const FusedForwardLaunch& launch_;
  unsigned char* const rings_;
  unsigned char* const tables_;
  const StreamTables at_;
  int count_ = 0;
};

// A warp's way through the units whose weights it brings, a step of 128 of K at a time.
template <WeightCode kCode, int kTokens>
class StreamFront {
 public:
  __device__ explicit StreamFront(const StreamBlock<kCode, kTokens>& block) : block_(block) {}

  // Whether there is another step, of the next unit if need be. Without `wait` also false while that unit's share is
  // not drawn.
  __device__ bool Ready(bool wait) { return 2 * step_ < lines_ || NextUnit(wait); }
  __device__ const StreamUnit& unit() const { return unit_; }
  __device__ int step() const { return step_; }
  __device__ void Advance() { ++step_; }

  // Weights of the step to a stage.
  __device__ void CopyWeights(std::uint32_t to) const {
    const int lane = threadIdx.x % 32;
    const bool whole = 2 * step_ + 1 < lines_;  // both halves
    if (kCode == WeightCode::kBF16 && !block_.launch().packed) return CopyPublished(to, whole);
    const unsigned char* const block = weights_ + std::int64_t{step_} * kBlock.bytes();
    if constexpr (kCode != WeightCode::kBF16) {
      if (lane < UnitScaleBytes(kCode) / 16) CopyChunk(to + kShape.scales_at() + lane * 16, block + scales_at_ + lane * 16);
    }
    const unsigned char* const from = block + lines_at_ + lane * 16;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && !whole) break;
#pragma unroll
      for (int i = 0; i < kHalfBytes; i += 512) {
        CopyChunk(to + half * kHalfBytes + i + lane * 16, from + half * kBlock.half_bytes() + i);
      }
    }
  }

 private:
  static constexpr StreamShape kShape = {kCode, kTokens};
  static constexpr PackedBlock kBlock = {kCode};
  static constexpr int kHalfBytes = UnitHalfBytes(kCode);

  __device__ bool NextUnit(bool wait) {
    while (left_ <= 0) {
      if (done_ || !NextShare(wait)) return false;
    }
    const StreamUnit& tile = block_.Tile(tile_);
    unit_ = {tile.expert, tile.first, column_, tile.phase_and_rows | static_cast<int>(phase_)};
    FindWeights();
    __syncwarp();
    if (threadIdx.x % 32 == 0) block_.Unit(units_) = unit_;
    __syncwarp();
    ++units_;
    step_ = 0;
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
  __device__ void FindWeights() {
    lines_ = block_.Lines(phase_);
    if (kCode == WeightCode::kBF16 && !block_.launch().packed) return;
    const int row = column_ * kUnitWeights, line = row % kPackedRows;
    weights_ = PackedRows(block_.launch(), kCode, phase_, unit_.expert, row - line);
    lines_at_ = kBlock.scale_bytes() + line * kBlock.line_bytes();
    scales_at_ = kCode == WeightCode::kMxfp4 ? line * (kPackedK / 32) : 0;
  }
  // Weights as published: a lane brings a chunk of every fourth row.
  __device__ void CopyPublished(std::uint32_t to, bool whole) const {
    const FusedForwardLaunch& launch = block_.launch();
    const bool up = unit_.phase() == Phase::kUp;
    const std::int64_t in = up ? launch.d : launch.f, rows = up ? 2 * launch.f : launch.d;
    const int lane = threadIdx.x % 32, chunk = lane % 8;
    const auto* const weights = static_cast<const unsigned char*>(up ? launch.gate_up : launch.down);
#pragma unroll
    for (int line = lane / 8; line < kUnitWeights; line += 4) {
      const std::int64_t row = !up        ? unit_.column * kUnitWeights + line
                               : line < 8 ? unit_.column * 8 + line
                                          : launch.f + unit_.column * 8 + line - 8;
      const unsigned char* const from = weights + ((unit_.expert * rows + row) * in + step_ * kStageK) * 2 + chunk * 16;
      const std::uint32_t at = to + line * kFusedLine + (chunk ^ line % 8) * 16;
      CopyChunk(at, from);
      if (whole) CopyChunk(at + kHalfBytes, from + kFusedLine);
    }
  }

  const StreamBlock<kCode, kTokens>& block_;
  StreamUnit unit_ = {};
  Phase phase_ = Phase::kUp;
  int shares_ = 0, units_ = 0;                 // so far
  int left_ = 0, tile_ = 0, column_ = 0;       // of the share, in units; the next unit
  int step_ = 0, lines_ = 0;
  bool done_ = false;
  const unsigned char* weights_ = nullptr;     // the packed tile that has the unit's rows
  int lines_at_ = 0, scales_at_ = 0;           // in each of its blocks
};

}  // namespace expertd::cuda
