// What the warps of a streaming block share.
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
    const bool waits = launch_.ids == nullptr;
    if (waits) WaitForPrevious();
    if (threadIdx.x == kThreads - 1) Shares()[0] = DrawShare();
#pragma unroll 1
    for (int i = threadIdx.x + 1; i < 2 * gridDim.x + 2; i += kThreads) Shares()[i] = -1;
    if (waits) {
      ReadMaps();
    } else if (threadIdx.x < 32) {
      SortSlots();
    }
    __syncthreads();
    count_ = Starts()[launch_.experts];
  }

  __device__ const FusedForwardLaunch& launch() const { return launch_; }
  __device__ int tiles() const { return count_; }
  __device__ const StreamUnit& Tile(int index) const { return Tiles()[index]; }
  // Units of a token tile.
  __device__ int Columns(Phase phase) const {
    return static_cast<int>(phase == Phase::kUp ? 2 * launch_.f : launch_.d) / kUnitWeights;
  }
  __device__ int Lines(Phase phase) const {
    return static_cast<int>(phase == Phase::kUp ? launch_.d : launch_.f) / kFusedLineK;
  }
  __device__ std::uint64_t RowAddress(Phase phase, int position) const {
    return phase == Phase::kUp
               ? Addresses()[position]
               : reinterpret_cast<std::uint64_t>(launch_.hidden) + std::int64_t{position} * launch_.f * 2;
  }
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
      if (threadIdx.x == 0 && *share < 0) *share = DrawShare();
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

 private:
  // Token tiles and addresses from the maps of the kernel before.
  __device__ void ReadMaps() const {
    const RowOfPosition row_of(launch_);
#pragma unroll 1
    for (int i = threadIdx.x; i < launch_.positions; i += kThreads) SetAddress(i, row_of(i));
    const int experts = static_cast<int>(launch_.experts);
    std::int32_t* const starts = Starts();
    TileSchedule tiles;
    tiles.Build<kThreads>(launch_.offsets, experts, kTokens, 1, starts);
#pragma unroll 1
    for (int e = threadIdx.x; e < experts; e += kThreads) {
#pragma unroll 1
      for (int tile = starts[e]; tile < starts[e + 1]; ++tile) {
        const int first = launch_.offsets[e] + (tile - starts[e]) * kTokens;
        Tiles()[tile] = {e, first, 0, min(kTokens, launch_.offsets[e + 1] - first) << 1};
      }
    }
  }
  // The same from the ids, by a warp, a slot a lane, without waiting for that kernel.
  __device__ void SortSlots() const {
    static_assert(kStreamPositions <= 32);
    constexpr int kNone = 1 << 30;
    const int lane = threadIdx.x, slots = static_cast<int>(launch_.positions);
    const int id = lane < slots ? launch_.ids[lane] : -1, expert = id < 0 ? kNone : id;
    int position = 0, first = 0, rows = 0;  // of the slot; of its expert
    for (int other = 0; other < slots; ++other) {
      const int its = __shfl_sync(0xffffffffu, expert, other);
      first += its < expert;
      position += its < expert || (its == expert && other < lane);
      rows += its == expert;
    }
    const int before = position - first;  // rows of the expert
    const bool begins = id >= 0 && before % kTokens == 0;
    int tile = 0;  // tiles before
    for (int other = 0; other < slots; ++other) {
      const int its = __shfl_sync(0xffffffffu, begins ? position : kNone, other);
      tile += its < position;
    }
    if (id >= 0) SetAddress(position, lane / launch_.rows_divisor);
    if (begins) Tiles()[tile] = {id, position, 0, min(kTokens, rows - before) << 1};
    const unsigned tiles = __ballot_sync(0xffffffffu, begins);
    if (lane == 0) Starts()[launch_.experts] = __popc(tiles);
  }

  __device__ void SetAddress(int position, int row) const {
    Addresses()[position] = reinterpret_cast<std::uint64_t>(launch_.rows) + row * launch_.d * 2;
  }
  __device__ std::int32_t* Starts() const { return reinterpret_cast<std::int32_t*>(tables_ + at_.starts); }
  __device__ StreamUnit* Tiles() const { return reinterpret_cast<StreamUnit*>(tables_); }
  __device__ std::uint64_t* Addresses() const { return reinterpret_cast<std::uint64_t*>(tables_ + at_.addresses); }
  __device__ int* Shares() const { return reinterpret_cast<int*>(tables_ + at_.shares); }
  __device__ int DrawShare() const { return atomicAdd(launch_.counters, 1); }

  const FusedForwardLaunch& launch_;
  unsigned char* const rings_;
  unsigned char* const tables_;
  const StreamTables at_;
  int count_ = 0;
};

}  // namespace expertd::cuda
