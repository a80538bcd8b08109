// The kernel for few rows: every warp streams weights of its own through a ring of its own, so that nothing waits for
// anything but memory, and multiplies them by mma.sync, which gives wgmma's bits.
//
// Blocks draw shares of all units from a counter: first the shares of the first product, one a block, then those of the
// second. Whoever waits for the first product has drawn a share of the second, so all of the first are drawn, by blocks
// that run: blocks need not be resident together. Weights of the second product are on their way while it waits.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/hopper/consumer.cuh"
#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/hopper/stream_config.h"
#include "kernels/cuda/launch_early.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

// bf16 weights of a line, like those of codes.
template <>
class LineOperand<WeightCode::kBF16> {
 public:
  __device__ LineOperand(std::uint32_t half, int lane) {
    const std::uint32_t at = lane % 16 * kFusedLine + ((lane / 16) ^ (lane % 8)) * 16;
#pragma unroll
    for (int k = 0; k < 4; ++k) LoadMatrices4(half + (at ^ k * 32), words_[k][0], words_[k][1], words_[k][2], words_[k][3]);
  }
  template <int kStep>
  __device__ void Step(std::uint32_t (&a)[4]) const {
#pragma unroll
    for (int i = 0; i < 4; ++i) a[i] = words_[kStep][i];
  }

 private:
  std::uint32_t words_[4][4];
};

struct StreamUnit {
  Phase phase = Phase::kUp;
  int expert = 0, first = 0, rows = 0, column = 0;
};

// What the block's warps share, and what they know of the launch.
template <WeightCode kCode>
class StreamBlock {
 public:
  static constexpr int kWarps = StreamWarps(kCode), kThreads = kWarps * 32;

  __device__ StreamBlock(const FusedForwardLaunch& launch, unsigned char* memory)
      : launch(launch),
        shape(kCode, launch.tokens, launch.positions, launch.experts, gridDim.x),
        base_(memory + (128 - SharedAddress(memory) % 128) % 128) {}

  // By all threads.
  __device__ void Prepare() {
    const int lane = threadIdx.x % 32;
    if (lane < shape.stages) Full(lane).Init(32);
    for (int i = threadIdx.x; i < 2 * gridDim.x + 2; i += kThreads) Shares()[i] = -1;
    WaitForPrevious();
    LaunchNext();
    const std::int64_t row_bytes = launch.d * 2;
    for (int i = threadIdx.x; i < launch.positions; i += kThreads) {
      const unsigned row = unsigned(max(launch.sorted_slots[i], 0)) / unsigned(launch.rows_divisor);
      Addresses()[i] = launch.row_addresses != nullptr
                           ? launch.row_addresses[row]
                           : reinterpret_cast<std::uint64_t>(launch.rows) + row * row_bytes;
    }
    up_.Build<kThreads>(launch.offsets, static_cast<int>(launch.experts), launch.tokens,
                        static_cast<int>(2 * launch.f / kUnitWeights),
                        reinterpret_cast<std::int32_t*>(base_ + shape.starts));
    down_ = up_.With(static_cast<int>(launch.d / kUnitWeights));
  }

  __device__ const TileSchedule& Units(Phase phase) const { return phase == Phase::kUp ? up_ : down_; }
  __device__ std::uint64_t RowAddress(int position) const { return Addresses()[position]; }
  __device__ std::uint32_t Stage(int stage) const {
    return SharedAddress(base_) + (threadIdx.x / 32 * shape.stages + stage) * shape.stage_bytes;
  }
  __device__ Barrier Full(int stage) const {
    return Barrier(SharedAddress(base_) + shape.barriers + (threadIdx.x / 32 * StreamShared::kMaxStages + stage) * 8);
  }

  // The block's share number `index`. The first warp draws it; by all lanes.
  __device__ int Share(int index) const {
    volatile int* const share = Shares() + index;
    if (threadIdx.x < 32) {
      if (threadIdx.x == 0 && *share < 0) *share = atomicAdd(launch.counters, 1);
      __syncwarp();
    }
    int drawn;
    while ((drawn = *share) < 0) {
    }
    return drawn;
  }

  __device__ void TellUp() const {
    __threadfence();
    __syncwarp();
    if (threadIdx.x % 32 == 0) atomicAdd(launch.counters + 1, 1);
  }
  // Waits for all of the first product. The first warp asks memory, the others ask it.
  __device__ void AwaitUp() const {
    volatile int* const told = Shares() + 2 * gridDim.x + 1;
    if (threadIdx.x < 32) {
      while (LoadAcquire(launch.counters + 1) < up_.tiles()) {
      }
      if (threadIdx.x == 0) *told = 1;
    } else {
      while (*told < 0) {
      }
    }
    __threadfence_block();
    __syncwarp();
  }

  const FusedForwardLaunch& launch;
  const StreamShared shape;

 private:
  __device__ int* Shares() const { return reinterpret_cast<int*>(base_ + shape.shares); }
  __device__ std::uint64_t* Addresses() const { return reinterpret_cast<std::uint64_t*>(base_ + shape.addresses); }

  unsigned char* const base_;
  TileSchedule up_, down_;
};

// A warp's way through its units, a step of 128 of K at a time, and through the stages of its ring.
template <WeightCode kCode>
class StreamWalk {
 public:
  __device__ explicit StreamWalk(const StreamBlock<kCode>& block) : block_(block) {}

  __device__ const StreamUnit& unit() const { return unit_; }
  __device__ int stage() const { return stage_; }
  __device__ std::uint32_t parity() const { return parity_; }
  __device__ int steps() const { return (lines_ + 1) / 2; }
  // Whether a step is there: the next unit's first, if need be.
  __device__ bool Ready() {
    if (done_) return false;
    if (2 * step_ < lines_) return true;
    step_ = 0;
    return NextUnit();
  }
  __device__ void Advance() {
    ++step_;
    stage_ = stage_ + 1 == block_.shape.stages ? 0 : stage_ + 1;
    parity_ ^= stage_ == 0;
  }
  __device__ bool whole() const { return 2 * step_ + 1 < lines_; }  // the step has both lines

  __device__ void CopyWeights() const {
    const std::uint32_t to = block_.Stage(stage_);
    const int lane = threadIdx.x % 32;
    if (kCode == WeightCode::kBF16 && !block_.launch.packed) return CopyPublished(to);
    const unsigned char* from = weights_ + std::int64_t{step_} * kBlock.bytes();
    if constexpr (kCode != WeightCode::kBF16) {
      if (lane < UnitScaleBytes(kCode) / 16) CopyChunk(Scales(to) + lane * 16, from + scales_ + lane * 16);
    }
    from += kBlock.scale_bytes() + line_bytes_;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (half == 1 && !whole()) break;
#pragma unroll
      for (int i = 0; i < kHalfBytes / 512; ++i) {
        CopyChunk(to + half * kHalfBytes + i * 512 + lane * 16, from + half * kBlock.half_bytes() + i * 512 + lane * 16);
      }
    }
  }
  // And tells the stage's barrier when all is there.
  __device__ void CopyRows() const {
    const FusedForwardLaunch& launch = block_.launch;
    const std::uint32_t to = Rows(block_.Stage(stage_));
    const int chunk = threadIdx.x % 16, half = chunk / 8;
    if (half == 0 || whole()) {
      for (int t = threadIdx.x % 32 / 16; t < unit_.rows; t += 2) {
        const std::uint64_t row =
            unit_.phase == Phase::kUp
                ? block_.RowAddress(unit_.first + t)
                : reinterpret_cast<std::uint64_t>(launch.hidden) + std::int64_t{unit_.first + t} * launch.f * 2;
        CopyChunk(to + (half * launch.tokens + t) * kFusedLine + (chunk % 8 ^ t) * 16,
                  reinterpret_cast<const unsigned char*>(row) + step_ * kStageRowBytes + chunk * 16);
      }
    }
    ArriveWhenCopied(block_.Full(stage_));
  }

  // The stage's parts.
  __device__ static std::uint32_t Rows(std::uint32_t stage) { return stage + 2 * kHalfBytes; }
  __device__ std::uint32_t Scales(std::uint32_t stage) const {
    return Rows(stage) + block_.launch.tokens * kStageRowBytes;
  }

 private:
  static constexpr PackedBlock kBlock = {kCode};
  static constexpr int kHalfBytes = UnitHalfBytes(kCode);

  __device__ bool NextUnit() {
    index_ += StreamBlock<kCode>::kWarps;
    const int shares = gridDim.x;
    while (index_ >= end_) {
      const int share = block_.Share(shares_drawn_++);
      if (share >= 2 * shares) {
        done_ = true;
        return false;
      }
      unit_.phase = share < shares ? Phase::kUp : Phase::kDown;
      const std::int64_t units = block_.Units(unit_.phase).tiles(), number = share % shares;
      index_ = number * units / shares + threadIdx.x / 32;
      end_ = (number + 1) * units / shares;
    }
    const GroupTile tile = block_.Units(unit_.phase).At(index_);
    unit_ = {unit_.phase, tile.expert, tile.first_position, tile.positions, tile.weight_tile};
    FindWeights();
    return true;
  }
  __device__ void FindWeights() {
    const FusedForwardLaunch& launch = block_.launch;
    const bool up = unit_.phase == Phase::kUp;
    lines_ = static_cast<int>(up ? launch.d : launch.f) / kFusedLineK;
    const int row = unit_.column * kUnitWeights;
    if (kCode == WeightCode::kBF16 && !launch.packed) return;
    weights_ = PackedRows(launch, kCode, unit_.phase, unit_.expert, row / kPackedRows * kPackedRows);
    line_bytes_ = row % kPackedRows * kBlock.line_bytes();
    scales_ = kCode == WeightCode::kMxfp4 ? row % kPackedRows * (kPackedK / 32) : 0;
  }
  // Weights as published: a lane brings a chunk of every fourth row.
  __device__ void CopyPublished(std::uint32_t to) const {
    const FusedForwardLaunch& launch = block_.launch;
    const bool up = unit_.phase == Phase::kUp;
    const std::int64_t in = up ? launch.d : launch.f, rows = up ? 2 * launch.f : launch.d;
    const int lane = threadIdx.x % 32, chunk = lane % 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int line = lane / 8 + 4 * i;
      const std::int64_t row = !up       ? unit_.column * kUnitWeights + line
                               : line < 8 ? unit_.column * 8 + line
                                          : launch.f + unit_.column * 8 + line - 8;
      const auto* const from = static_cast<const unsigned char*>(up ? launch.gate_up : launch.down) +
                               ((unit_.expert * rows + row) * in + step_ * kStageK) * 2 + chunk * 16;
      const std::uint32_t at = to + line * kFusedLine + (chunk ^ line % 8) * 16;
      CopyChunk(at, from);
      if (whole()) CopyChunk(at + kHalfBytes, from + kFusedLine);
    }
  }

  const StreamBlock<kCode>& block_;
  StreamUnit unit_;
  std::int64_t index_ = 0, end_ = 0;  // of units
  int shares_drawn_ = 0, step_ = 0, lines_ = 0, stage_ = 0;
  std::uint32_t parity_ = 0;
  bool done_ = false;
  const unsigned char* weights_ = nullptr;
  int line_bytes_ = 0, scales_ = 0;
};

// Multiplies a unit and stores it.
template <WeightCode kCode, class Known>
class StreamSums {
 public:
  __device__ void Add(const StreamWalk<kCode>& walk, std::uint32_t stage, int tokens) {
    const int lane = threadIdx.x % 32, token = min(lane % 8, tokens - 1);
    const std::uint32_t lane_at = token * kFusedLine + ((lane / 8) ^ token) * 16;
    const std::uint32_t rows = walk.Rows(stage);
    const auto line = [&]<int kLine>() {
      const LineRows<kUnitTokens> line_rows(rows + kLine * tokens * kFusedLine, lane_at);
      line_rows.Multiply(Line<kLine>(walk, stage), sums_);
    };
    line.template operator()<0>();
    if (walk.whole()) line.template operator()<1>();
    if constexpr (kCode == WeightCode::kFp8) {
      const uint2 scales = LoadSharedPair(walk.Scales(stage));
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        totals_[i] = fmaf(sums_[0][i], __uint_as_float(i < 2 ? scales.x : scales.y), totals_[i]);
        sums_[0][i] = 0.0f;
      }
    }
  }

  __device__ void Store(const FusedForwardLaunch& launch, const StreamUnit& unit) {
    if constexpr (kCode != WeightCode::kFp8) {
#pragma unroll
      for (int i = 0; i < 4; ++i) totals_[i] = sums_[0][i];
    }
    if constexpr (kCode == WeightCode::kMxfp4) Unscale(totals_);
    if (unit.phase == Phase::kUp) {
      Known::Select(launch.gate, [&]<Gate kGate>() { StoreUp<kGate>(launch, unit); });
    } else {
      StoreEight(launch.slots, launch.d, unit, unit.column * kUnitWeights, PackBf16(totals_[0], totals_[1]));
      StoreEight(launch.slots, launch.d, unit, unit.column * kUnitWeights + 8, PackBf16(totals_[2], totals_[3]));
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) totals_[i] = sums_[0][i] = 0.0f;
  }

 private:
  template <int kLine>
  __device__ static LineOperand<kCode> Line(const StreamWalk<kCode>& walk, std::uint32_t stage) {
    const std::uint32_t half = stage + kLine * UnitHalfBytes(kCode);
    const int lane = threadIdx.x % 32;
    if constexpr (kCode == WeightCode::kBF16) {
      return LineOperand<kCode>(half, lane);
    } else if constexpr (kCode == WeightCode::kFp8) {
      return LineOperand<kCode>(half, lane / 4, lane);
    } else {
      const std::uint32_t scales = walk.Scales(stage) + lane / 4 * 4;
      return LineOperand<kCode>(half, lane / 4, lane, Fp4Scales<kLine>(LoadSharedWord(scales)),
                                Fp4Scales<kLine>(LoadSharedWord(scales + 32)));
    }
  }
  template <Gate kGate>
  __device__ void StoreUp(const FusedForwardLaunch& launch, const StreamUnit& unit) const {
    const GateParams params = {kGate, launch.limit, launch.alpha};
    const int feature = unit.column * 8 + threadIdx.x % 32 / 4;
    float gate_bias = 0.0f, up_bias = 0.0f;
    if (launch.gate_up_bias != nullptr) {
      const float* const bias = launch.gate_up_bias + unit.expert * 2 * launch.f + feature;
      gate_bias = bias[0], up_bias = bias[launch.f];
    }
    const auto value = [&](int odd) {
      return Activate<kGate>(totals_[odd] + gate_bias, totals_[2 + odd] + up_bias, params);
    };
    StoreEight(launch.hidden, launch.f, unit, unit.column * 8, PackBf16(value(0), value(1)));
  }
  // Eight features from `feature` on, of `width`, of each token row: `pair` is of feature lane / 4, tokens 2 (lane % 4)
  // and the next.
  __device__ static void StoreEight(void* to, std::int64_t width, const StreamUnit& unit, int feature,
                                    std::uint32_t pair) {
    const int lane = threadIdx.x % 32, token = lane / 4;
    const std::uint32_t word = TransposeMatrix(pair);
    if (token >= unit.rows) return;
    static_cast<std::uint32_t*>(to)[((unit.first + token) * width + feature) / 2 + lane % 4] = word;
  }

  float sums_[1][4] = {}, totals_[4] = {};
};

template <WeightCode kCode, class Known>
__global__ void __launch_bounds__(StreamBlock<kCode>::kThreads, 1)
    StreamKernel(const __grid_constant__ FusedForwardLaunch launch) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ unsigned char memory[];
  StreamBlock<kCode> block(launch, memory);
  block.Prepare();
  StreamWalk<kCode> front(block), back(block);
  bool up_is_there = false;
  int without_rows = 0;  // stages on their way that wait for the first product
  const auto bring = [&] {
    if (!front.Ready()) return;
    front.CopyWeights();
    if (front.unit().phase == Phase::kUp || up_is_there) {
      front.CopyRows();
    } else {
      ++without_rows;
    }
    front.Advance();
  };
  for (int i = 0; i < block.shape.stages; ++i) bring();
  StreamSums<kCode, Known> sums;
  while (back.Ready()) {
    const StreamUnit unit = back.unit();
    if (unit.phase == Phase::kDown && !up_is_there) {
      block.AwaitUp();
      up_is_there = true;
      StreamWalk<kCode> late = back;
      for (; without_rows > 0; --without_rows) {
        late.Ready();
        late.CopyRows();
        late.Advance();
      }
    }
    for (int step = back.steps(); step > 0; --step) {
      block.Full(back.stage()).Wait(back.parity());
      sums.Add(back, block.Stage(back.stage()), launch.tokens);
      __syncwarp();
      back.Advance();
      bring();
    }
    sums.Store(launch, unit);
    if (unit.phase == Phase::kUp) block.TellUp();
  }
#endif
}

}  // namespace expertd::cuda
