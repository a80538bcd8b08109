// grad_w[e] = grad_out^T . x over the positions of e, by tensor cores, persistent over the tiles of all experts.
//
// The sum runs over rows, so both operands lie across it: rows of a stage are positions, and ldmatrix transposes on its
// way out of shared memory. One pipeline runs through all tiles of a block, as in grouped_gemm.cu. Positions past an
// expert's last are zeros in both operands. Each sum adds its positions in order, 16 at a time.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/weight_grad.h"

namespace expertd::cuda {
namespace {

constexpr int kWarps = kGradWarpsOut * kGradWarpsIn, kThreads = kWarps * 32;
constexpr int kBlocksM = kGradTileOut / kGradWarpsOut / 16, kBlocksN = kGradTileIn / kGradWarpsIn / 8;  // of one warp
constexpr int kOutBytes = kGradTileOut * 2, kInBytes = kGradTileIn * 2;
constexpr int kStageBytes = kGradPositions * (kOutBytes + kInBytes);

// Byte of a 16-byte chunk within a stage's rows of kRowBytes: eight neighbouring rows keep a chunk in eight places.
template <int kRowBytes>
__device__ int ChunkByte(int row, int chunk) {
  return row * kRowBytes + (chunk ^ (row & 7)) * 16;
}

struct GradTile {
  std::int64_t expert;
  int out, in;      // first of each
  int first, last;  // positions
};

// Neighbouring blocks share an expert's grad_out columns in L2.
__device__ GradTile TileAt(const WeightGradLaunch& launch, std::int64_t index) {
  const auto tiles_in = static_cast<unsigned>((launch.in + kGradTileIn - 1) / kGradTileIn);
  const auto tiles_out = static_cast<unsigned>((launch.out_features + kGradTileOut - 1) / kGradTileOut);
  const Split expert = Divide(index, tiles_in * tiles_out);
  const auto within = static_cast<unsigned>(expert.remainder);
  return {expert.quotient, static_cast<int>(within / tiles_in * kGradTileOut),
          static_cast<int>(within % tiles_in * kGradTileIn), launch.offsets[expert.quotient],
          launch.offsets[expert.quotient + 1]};
}

// Starts the copies of positions [first, first + kGradPositions) of `columns` elements from `column` on.
template <int kColumns>
__device__ void CopyRows(const void* rows, std::int64_t pitch, int column, int first, int last, std::uint32_t to) {
  constexpr int kChunks = kColumns / 8, kRowsAtOnce = kThreads / kChunks;
  const int chunk = threadIdx.x % kChunks, element = column + chunk * 8;
#pragma unroll
  for (int i = 0; i < kGradPositions / kRowsAtOnce; ++i) {
    const int row = threadIdx.x / kChunks + i * kRowsAtOnce;
    const bool valid = first + row < last && element < pitch;
    const bf16* const from = static_cast<const bf16*>(rows);
    CopyAsync(to + ChunkByte<kColumns * 2>(row, chunk),
              valid ? from + std::int64_t{first + row} * pitch + element : from, valid);
  }
}

// Copies stage after stage, tile after tile; tiles without positions have no stages.
class Loader {
 public:
  __device__ Loader(const WeightGradLaunch& launch, std::int64_t tiles, std::uint32_t shared)
      : launch_(launch), tiles_(tiles), shared_(shared), index_(blockIdx.x) {
    FindTile();
  }
  // Commits a group also when there is nothing left, so that groups count stages.
  __device__ void LoadStage() {
    if (index_ < tiles_) {
      const std::uint32_t to = shared_ + slot_ * kStageBytes;
      CopyRows<kGradTileOut>(launch_.grad_out, launch_.out_features, tile_.out, position_, tile_.last, to);
      CopyRows<kGradTileIn>(launch_.x, launch_.in, tile_.in, position_, tile_.last, to + kGradPositions * kOutBytes);
      position_ += kGradPositions;
      if (position_ >= tile_.last) {
        index_ += gridDim.x;
        FindTile();
      }
    }
    CommitCopies();
    slot_ = slot_ + 1 == kGradStages ? 0 : slot_ + 1;
  }

 private:
  __device__ void FindTile() {
    for (; index_ < tiles_; index_ += gridDim.x) {
      tile_ = TileAt(launch_, index_);
      position_ = tile_.first;
      if (tile_.first < tile_.last) return;
    }
  }

  const WeightGradLaunch& launch_;
  const std::int64_t tiles_;
  const std::uint32_t shared_;
  std::int64_t index_;
  GradTile tile_;
  int position_ = 0, slot_ = 0;
};

// One warp's part of a tile: kBlocksM * 16 out features x kBlocksN * 8 in features, and the fragments of two steps of
// 16 positions.
class WarpTile {
 public:
  static constexpr int kSteps = kGradPositions / 16;

  __device__ void Clear() {
#pragma unroll
    for (int m = 0; m < kBlocksM; ++m) {
#pragma unroll
      for (int n = 0; n < kBlocksN; ++n) sum_[m][n][0] = sum_[m][n][1] = sum_[m][n][2] = sum_[m][n][3] = 0.0f;
    }
  }

  // Fetches the fragments of 16 positions, step * 16 on, from the stage at `stage`.
  __device__ void Fetch(std::uint32_t stage, int step) {
    const std::uint32_t x = stage + kGradPositions * kOutBytes;
    auto& a = a_[step % 2];
    auto& b = b_[step % 2];
#pragma unroll
    for (int m = 0; m < kBlocksM; ++m) {
      // Matrices: (positions 0-7, features 0-7), features 8-15, then positions 8-15 likewise.
      const int row = step * 16 + Lane() / 16 * 8 + Lane() % 8;
      const int chunk = WarpOut() * kBlocksM * 2 + m * 2 + Lane() / 8 % 2;
      LoadMatrices4<true>(stage + ChunkByte<kOutBytes>(row, chunk), a[m][0], a[m][1], a[m][2], a[m][3]);
    }
#pragma unroll
    for (int n = 0; n < kBlocksN; n += 2) {
      // Positions 0-7, then 8-15, of one block of 8 features and of the next.
      const int row = step * 16 + Lane() / 8 % 2 * 8 + Lane() % 8;
      const int chunk = WarpIn() * kBlocksN + n + Lane() / 16;
      LoadMatrices4<true>(x + ChunkByte<kInBytes>(row, chunk), b[n][0], b[n][1], b[n + 1][0], b[n + 1][1]);
    }
  }

  __device__ void Multiply(int step) {
#pragma unroll
    for (int m = 0; m < kBlocksM; ++m) {
#pragma unroll
      for (int n = 0; n < kBlocksN; ++n) MultiplyAdd(sum_[m][n], a_[step % 2][m], b_[step % 2][n]);
    }
  }

  template <typename Grad>
  __device__ void Write(const WeightGradLaunch& launch, const GradTile& tile) const {
    const std::int64_t first_out = tile.out + WarpOut() * kBlocksM * 16 + Lane() / 4;
    const std::int64_t first_in = tile.in + WarpIn() * kBlocksN * 8 + Lane() % 4 * 2;
    Grad* const grad = static_cast<Grad*>(launch.grad_w) + tile.expert * launch.out_features * launch.in;
#pragma unroll
    for (int m = 0; m < kBlocksM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const std::int64_t out = first_out + m * 16 + half * 8;
        if (out >= launch.out_features) continue;
#pragma unroll
        for (int n = 0; n < kBlocksN; ++n) {
          const std::int64_t in = first_in + n * 8;
          const float pair[2] = {sum_[m][n][half * 2], sum_[m][n][half * 2 + 1]};
          if (in < launch.in) Store(grad + out * launch.in + in, pair);
        }
      }
    }
  }

 private:
  __device__ static int Lane() { return threadIdx.x % 32; }
  // Warps of one scheduler take different rows of the tile.
  __device__ static int WarpOut() { return threadIdx.x / 32 / kGradWarpsIn; }
  __device__ static int WarpIn() { return threadIdx.x / 32 % kGradWarpsIn; }

  std::uint32_t a_[2][kBlocksM][4], b_[2][kBlocksN][2];
  float sum_[kBlocksM][kBlocksN][4];
};

template <typename Grad>
__global__ void __launch_bounds__(kThreads, 1)
    WeightGradKernel(const __grid_constant__ WeightGradLaunch launch, std::int64_t tiles) {
  extern __shared__ __align__(128) unsigned char memory[];
  const std::uint32_t shared = SharedAddress(memory);
  Loader loader(launch, tiles, shared);
#pragma unroll 1
  for (int i = 0; i + 1 < kGradStages; ++i) loader.LoadStage();

  // The oldest stage has arrived, for everybody; and nobody reads the one before it any more.
  const auto next_stage = [] {
    WaitCopies<kGradStages - 2>();
    __syncthreads();
  };

  WarpTile warp;
  next_stage();
  warp.Fetch(shared, 0);
  loader.LoadStage();
  int slot = 0;
  for (std::int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const GradTile tile = TileAt(launch, index);
    warp.Clear();
    for (int position = tile.first; position < tile.last; position += kGradPositions) {
      const std::uint32_t stage = shared + slot * kStageBytes;
      slot = slot + 1 == kGradStages ? 0 : slot + 1;
#pragma unroll
      for (int step = 0; step < warp.kSteps; ++step) {
        if (step + 1 < warp.kSteps) {
          warp.Fetch(stage, step + 1);
        } else {
          next_stage();  // of this tile or of a later one; after the last, stale bytes that nothing multiplies
          warp.Fetch(shared + slot * kStageBytes, 0);
          loader.LoadStage();
        }
        warp.Multiply(step);
      }
    }
    warp.Write<Grad>(launch, tile);
  }
}

template <typename Grad>
int Launch(const WeightGradLaunch& launch, cudaStream_t stream) {
  constexpr int kShared = GradSharedBytes(kGradStages);
  const auto kernel = WeightGradKernel<Grad>;
  const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  kernel<<<launch.blocks, kThreads, kShared, stream>>>(launch,
                                                       GradTiles(launch.experts, launch.out_features, launch.in));
  return cudaGetLastError();
}

}  // namespace

int LaunchWeightGrad(const WeightGradLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return launch.grad_element == Element::kBF16 ? Launch<bf16>(launch, stream) : Launch<float>(launch, stream);
}

}  // namespace expertd::cuda
