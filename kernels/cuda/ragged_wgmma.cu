// One persistent kernel for both gradients. A producer thread copies boxes of 64 x 64 elements with the tensor memory
// accelerator, kRaggedStages steps ahead and on through the block's tiles; two warpgroups multiply, 64 of the tile's
// 128 rows each. Both operands of the weight gradient, and the weights of the input's, lie across the sum: their lines
// run along the result, which the products take as they take the other orientation.
//
// The last step of an expert's positions also brings rows of the next expert. They are set to zero in shared memory,
// not multiplied by zero: what is not a number must not leak into a neighbour.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/ragged_wgmma.h"
#include "kernels/cuda/ragged_wgmma_config.h"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {
namespace {

constexpr int kConsumers = 256, kThreads = kConsumers + 128;
constexpr int kBoxesA = kRaggedRows / kRaggedBox, kBoxes = kRaggedStageBytes / kRaggedBoxBytes;

struct Maps {
  CUtensorMap left, right;
};

struct Tile {
  int expert;
  int row, row_end;  // of the result
  int column;
  int begin, end;  // of the sum
};

// The block's tiles, in the order in which it takes them.
template <SumOver kSum>
class Tiles {
 public:
  // By all threads of the block.
  __device__ Tiles(const RaggedWgmmaLaunch& launch, std::int32_t* starts) : launch_(launch) {
    columns_ = static_cast<int>((launch.in + kRaggedColumns - 1) / kRaggedColumns);
    rows_ = static_cast<int>((launch.out_features + kRaggedRows - 1) / kRaggedRows);
    if constexpr (kSum == SumOver::kFeatures) {
      schedule_.Build<kThreads>(launch.offsets, static_cast<int>(launch.experts), kRaggedRows, columns_, starts);
    }
  }
  __device__ std::int64_t count() const {
    return kSum == SumOver::kFeatures ? schedule_.tiles() : launch_.experts * rows_ * columns_;
  }
  __device__ Tile At(std::int64_t index) const {
    if constexpr (kSum == SumOver::kFeatures) {
      const GroupTile tile = schedule_.At(index);
      return {tile.expert,
              tile.first_position,
              tile.first_position + tile.positions,
              tile.weight_tile * kRaggedColumns,
              0,
              static_cast<int>(launch_.out_features)};
    } else {
      const Split expert = Divide(index, std::int64_t{rows_} * columns_);
      const int within = static_cast<int>(expert.remainder), row = within / columns_;
      return {static_cast<int>(expert.quotient),      row * kRaggedRows,
              static_cast<int>(launch_.out_features), (within - row * columns_) * kRaggedColumns,
              launch_.offsets[expert.quotient],       launch_.offsets[expert.quotient + 1]};
    }
  }

 private:
  const RaggedWgmmaLaunch& launch_;
  int columns_, rows_;
  TileSchedule schedule_;
};

// Stages in shared memory and their barriers; walks through them, round after round.
class Pipeline {
 public:
  __device__ explicit Pipeline(std::uint32_t shared) : shared_(shared) {}
  __device__ std::uint32_t Stage() const { return shared_ + slot_ * kRaggedStageBytes; }
  __device__ Barrier Full() const { return BarrierAt(slot_); }
  __device__ Barrier Empty() const { return BarrierAt(kRaggedStages + slot_); }
  __device__ Barrier EmptyBefore() const {
    return BarrierAt(kRaggedStages + (slot_ + kRaggedStages - 1) % kRaggedStages);
  }
  __device__ std::uint32_t parity() const { return parity_; }
  __device__ void Advance() {
    slot_ = slot_ + 1 == kRaggedStages ? 0 : slot_ + 1;
    parity_ ^= slot_ == 0;
  }
  __device__ Barrier BarrierAt(int index) const {
    return Barrier(shared_ + kRaggedStages * kRaggedStageBytes + index * 8);
  }

 private:
  std::uint32_t shared_;
  int slot_ = 0;
  std::uint32_t parity_ = 0;
};

template <SumOver kSum>
__device__ void Produce(const Tiles<kSum>& tiles, const Maps& maps, Pipeline pipeline) {
  for (std::int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const Tile tile = tiles.At(index);
    for (int at = tile.begin; at < tile.end; at += kRaggedStep) {
      pipeline.Empty().Wait(pipeline.parity() ^ 1);
      const Barrier full = pipeline.Full();
      full.ArriveAndExpect(kRaggedStageBytes);
      std::uint32_t to = pipeline.Stage();
      for (int box = 0; box < kBoxesA; ++box, to += kRaggedBoxBytes) {
        const int row = tile.row + box * kRaggedBox;
        if constexpr (kSum == SumOver::kPositions) {
          CopyBox(to, maps.left, row, at, 0, full);
        } else {
          CopyBox(to, maps.left, at, row, 0, full);
        }
      }
      for (int box = 0; box < kBoxes - kBoxesA; ++box, to += kRaggedBoxBytes) {
        CopyBox(to, maps.right, tile.column + box * kRaggedBox, at, kSum == SumOver::kPositions ? 0 : tile.expert,
                full);
      }
      pipeline.Advance();
    }
  }
}

// Clears the lines of each box of a stage from `first` on; by all consumers.
__device__ void ClearLines(std::uint32_t stage, int first) {
  const int chunks = (kRaggedStep - first) * 8;
  for (int i = threadIdx.x; i < kBoxes * chunks; i += kConsumers) {
    const int box = i / chunks, chunk = i - box * chunks;
    const std::uint32_t to = stage + box * kRaggedBoxBytes + first * 128 + chunk * 16;
    asm volatile("st.shared.v4.u32 [%0], {%1, %1, %1, %1};" ::"r"(to), "r"(0) : "memory");
  }
  FenceAsync();
  SyncSome<1, kConsumers>();
}

// One warpgroup's 64 rows of a tile.
template <SumOver kSum, typename Result>
__device__ void Consume(const RaggedWgmmaLaunch& launch, const Tiles<kSum>& tiles, Pipeline pipeline) {
  constexpr bool kAcross = kSum == SumOver::kPositions;    // lines of the left operand run along the result
  constexpr int kLeftBytes = kAcross ? 16 * 128 : 16 * 2;  // to the next 16 of the sum
  const int group = threadIdx.x / 128;
  for (std::int64_t index = blockIdx.x; index < tiles.count(); index += gridDim.x) {
    const Tile tile = tiles.At(index);
    float sum[128];
#pragma unroll
    for (float& s : sum) s = 0.0f;
#pragma unroll 1
    for (int at = tile.begin; at < tile.end; at += kRaggedStep) {
      const int valid = tile.end - at;
      pipeline.Full().Wait(pipeline.parity());
      const std::uint32_t stage = pipeline.Stage();
      if (kAcross && valid < kRaggedStep) ClearLines(stage, valid);
      ProductsFence();
#pragma unroll
      for (int step = 0; step < kRaggedStep / 16; ++step) {
        MultiplyTile<kAcross>(sum, Operand(stage + group * kRaggedBoxBytes + step * kLeftBytes, 16),
                              Operand(stage + kBoxesA * kRaggedBoxBytes + step * 16 * 128, kRaggedBoxBytes));
      }
      CommitProducts();
      WaitProducts<1>();
      if (at > tile.begin && threadIdx.x % 32 == 0) pipeline.EmptyBefore().Arrive();
      pipeline.Advance();
    }
    WaitProducts<0>();
    if (tile.begin < tile.end && threadIdx.x % 32 == 0) pipeline.EmptyBefore().Arrive();

    const int row = tile.row + group * 64 + threadIdx.x % 128 / 32 * 16 + threadIdx.x % 32 / 4;
    const int column = tile.column + threadIdx.x % 4 * 2;
    Result* const result = static_cast<Result*>(launch.result) +
                           (kAcross ? tile.expert * launch.out_features * launch.in : std::int64_t{0});
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      if (row + half * 8 >= tile.row_end) continue;
      Result* const to = result + (row + half * 8) * launch.in + column;
#pragma unroll
      for (int i = 0; i < kRaggedColumns / 8; ++i) {
        const float pair[2] = {sum[4 * i + 2 * half], sum[4 * i + 2 * half + 1]};
        if (column + 8 * i < launch.in) Store(to + 8 * i, pair);
      }
    }
  }
}

template <SumOver kSum, typename Result>
__global__ void __launch_bounds__(kThreads, 1)
    RaggedKernel(const __grid_constant__ RaggedWgmmaLaunch launch, const __grid_constant__ Maps maps) {
  extern __shared__ unsigned char memory[];
  unsigned char* const stages = memory + (1024 - SharedAddress(memory) % 1024) % 1024;
  const Pipeline pipeline(SharedAddress(stages));
  if (threadIdx.x == 0) {
    for (int i = 0; i < kRaggedStages; ++i) {
      pipeline.BarrierAt(i).Init(1);
      pipeline.BarrierAt(kRaggedStages + i).Init(kConsumers / 32);
    }
    FenceBarriers();
  }
  __syncthreads();
  auto* const starts =
      reinterpret_cast<std::int32_t*>(stages + kRaggedStages * kRaggedStageBytes + 2 * kRaggedStages * 8);
  const Tiles<kSum> tiles(launch, starts);
  if (threadIdx.x >= kConsumers) {
    ShrinkRegisters<40>();
    if (threadIdx.x == kConsumers) Produce(tiles, maps, pipeline);
  } else {
    GrowRegisters<232>();
    Consume<kSum, Result>(launch, tiles, pipeline);
  }
}

// A map of [planes, lines, width] bf16 elements, in boxes of 64 x 64. Answers a cudaError_t.
int MakeMap(const void* data, std::int64_t width, std::int64_t lines, std::int64_t planes, CUtensorMap& map) {
  const auto w = static_cast<std::uint64_t>(width), l = static_cast<std::uint64_t>(lines);
  return MakeTensorMap<3>(data, {w, l, static_cast<std::uint64_t>(planes)}, {w * 2, w * l * 2},
                          {kRaggedBox, kRaggedStep, 1}, map);
}

template <SumOver kSum, typename Result>
int Launch(const RaggedWgmmaLaunch& launch, cudaStream_t stream) {
  Maps maps;
  const bool positions = kSum == SumOver::kPositions;
  int error = MakeMap(launch.grad_out, launch.out_features, launch.positions, 1, maps.left);
  if (error != cudaSuccess) return error;
  error = MakeMap(launch.right, launch.in, positions ? launch.positions : launch.out_features,
                  positions ? 1 : launch.experts, maps.right);
  if (error != cudaSuccess) return error;
  const auto kernel = RaggedKernel<kSum, Result>;
  const int shared = RaggedSharedBytes(launch.experts);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  kernel<<<launch.blocks, kThreads, shared, stream>>>(launch, maps);
  return cudaGetLastError();
}

}  // namespace

int LaunchRaggedWgmma(const RaggedWgmmaLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const auto run = [&]<SumOver kSum>() {
    return launch.result_element == Element::kBF16 ? Launch<kSum, bf16>(launch, stream)
                                                   : Launch<kSum, float>(launch, stream);
  };
  return launch.sum == SumOver::kPositions ? run.template operator()<SumOver::kPositions>()
                                           : run.template operator()<SumOver::kFeatures>();
}

}  // namespace expertd::cuda
