// out^T = W . x^T by tensor cores, persistent over the tiles of all experts.
//
// One pipeline runs through all tiles of a block: the loader is up to kStages steps of K ahead of the sums and goes on
// to the next tile while they finish this one, so a tile starts with its data there. Within a stage, the fragments of
// one step of 16 are on their way from shared memory while the tensor cores work on those before. A stage holds 64
// elements of K of the tile's weight rows and token rows, 128 bytes each, in 16-byte chunks whose place is rotated by a
// hash of the row so that ldmatrix meets every bank once.
//
// Weight rows may enter the product in any order; they enter so that, after one movmatrix for each 8x8 block of
// results, a lane holds 8 neighbouring features of one token and stores them as 16 bytes: rows 8 c + 2 j + b of 32 are
// row 8 j + 2 c + b of the product (c = lane % 4).
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/tile_schedule.cuh"

namespace expertd::cuda {
namespace {

constexpr int kRowBytes = kGemmK * 2;
constexpr int kChunks = kRowBytes / 16;

template <GemmTile kTile>
struct Tile {
  static constexpr GemmTileShape kShape = ShapeOf(kTile);
  static constexpr int kWeights = kShape.weights, kTokens = kShape.tokens, kStages = kShape.stages;
  static constexpr int kThreads = kShape.warps_m * kShape.warps_n * 32;
  static constexpr int kRowsAtOnce = kThreads / kChunks;  // rows that all threads copy together
  static constexpr int kWeightCopies = kWeights / kRowsAtOnce;
  static constexpr int kTokenCopies = (kTokens + kRowsAtOnce - 1) / kRowsAtOnce;
  static constexpr int kStageBytes = (kWeights + kTokens) * kRowBytes;
  // Of one warp, in blocks of 16 weight rows and 8 tokens.
  static constexpr int kBlocksM = kWeights / kShape.warps_m / 16, kBlocksN = kTokens / kShape.warps_n / 8;
};

// Byte of a chunk within a stage's weight rows or token rows. The rows that one ldmatrix reads differ in the hash: for
// weights 8 apart and neighbours (see above), for tokens neighbours.
__device__ int WeightByte(int row, int chunk) {
  return row * kRowBytes + (chunk ^ ((row >> 3 & 3) * 2 + (row & 1))) * 16;
}
__device__ int TokenByte(int row, int chunk) { return row * kRowBytes + (chunk ^ (row & 7)) * 16; }

__device__ int Lane() { return threadIdx.x % 32; }

// Copies stage after stage, tile after tile. Each thread copies chunk threadIdx % 8 of every kRowsAtOnce-th row.
template <GemmTile kTile>
class Loader {
  using T = Tile<kTile>;

 public:
  __device__ Loader(const GroupedGemmLaunch& launch, const TileSchedule& schedule, std::uint32_t shared)
      : launch_(launch), schedule_(schedule), shared_(shared), index_(blockIdx.x) {
    Prepare();
    NextTile();
  }

  // Starts the copies of one stage; commits a group also when there is nothing left, so that groups count stages.
  // A copy of nothing may name any address.
  __device__ void LoadStage() {
    if (has_tile_) {
      const bool inside = k_ + Chunk() * 8 < launch_.in;
      const std::uint32_t stage = shared_ + slot_ * T::kStageBytes;
      const std::uint32_t tokens = stage + T::kWeights * kRowBytes + TokenByte(Row(0), Chunk());
      const bf16* weight = weights_ + k_;
#pragma unroll
      for (int i = 0; i < T::kWeightCopies; ++i) {
        // With 32 rows at once the hash is the same for all.
        const int byte = T::kRowsAtOnce % 32 == 0 ? WeightByte(Row(0), Chunk()) + i * T::kRowsAtOnce * kRowBytes
                                                  : WeightByte(Row(i), Chunk());
        CopyAsync(stage + byte, weight, inside && Row(i) < weight_rows_);
        weight += T::kRowsAtOnce * launch_.in;
      }
      const auto* const x =
          reinterpret_cast<const unsigned char*>(static_cast<const bf16*>(launch_.x) + k_ + Chunk() * 8);
      const auto row_bytes = static_cast<std::uint32_t>(launch_.in * 2);
#pragma unroll
      for (int i = 0; i < T::kTokenCopies; ++i) {
        if (T::kTokens % T::kRowsAtOnce != 0 && Row(i) >= T::kTokens) break;
        const auto row = static_cast<std::uint32_t>(max(token_row_[i], 0));
        CopyAsync(tokens + i * T::kRowsAtOnce * kRowBytes, x + std::uint64_t{row} * row_bytes,
                  inside && token_row_[i] >= 0);
      }
      k_ += kGemmK;
      if (k_ >= launch_.in) NextTile();
    }
    CommitCopies();
    slot_ = slot_ + 1 == T::kStages ? 0 : slot_ + 1;
  }

 private:
  __device__ static int Chunk() { return threadIdx.x % kChunks; }
  __device__ static int Row(int i) { return threadIdx.x / kChunks + i * T::kRowsAtOnce; }

  // Looks up the tile after the current one, so that its row numbers have arrived when it begins.
  __device__ void Prepare() {
    has_next_ = index_ < schedule_.tiles();
    if (!has_next_) return;
    next_ = schedule_.At(index_);
    index_ += gridDim.x;
#pragma unroll
    for (int i = 0; i < T::kTokenCopies; ++i) {
      const int position = next_.first_position + Row(i);
      const bool exists = Row(i) < next_.positions;
      next_row_[i] = !exists ? -1 : launch_.gather == nullptr ? position : launch_.gather[position];
    }
  }
  __device__ void NextTile() {
    k_ = 0;
    has_tile_ = has_next_;
    if (!has_tile_) return;
    const std::int64_t feature = std::int64_t{next_.weight_tile} * T::kWeights;
    weights_ = static_cast<const bf16*>(launch_.w) +
               (next_.expert * launch_.out_features + feature + Row(0)) * launch_.in + Chunk() * 8;
    weight_rows_ = static_cast<int>(min(launch_.out_features - feature, std::int64_t{T::kWeights}));
#pragma unroll
    for (int i = 0; i < T::kTokenCopies; ++i) {
      token_row_[i] =
          next_row_[i] < 0 || launch_.rows_divisor == 1 ? next_row_[i] : next_row_[i] / launch_.rows_divisor;
    }
    Prepare();
  }

  const GroupedGemmLaunch& launch_;
  const TileSchedule& schedule_;
  const std::uint32_t shared_;
  std::int64_t index_;
  GroupTile next_;
  bool has_tile_ = false, has_next_ = false;
  int k_ = 0, slot_ = 0;
  const bf16* weights_ = nullptr;  // this thread's first row and chunk, K = 0
  int weight_rows_ = 0;
  int token_row_[T::kTokenCopies], next_row_[T::kTokenCopies];
};

// One warp's part of a tile: its sums, and the fragments of two steps of 16 along K.
template <GemmTile kTile>
class WarpTile {
  using T = Tile<kTile>;

 public:
  static constexpr int kSteps = kGemmK / 16;

  __device__ WarpTile()
      : warp_m_(threadIdx.x / 32 % T::kShape.warps_m),
        warp_n_(threadIdx.x / 32 / T::kShape.warps_m),
        weight_byte_((warp_m_ * T::kBlocksM * 16 + Lane() % 8 / 2 * 8 + Lane() / 8 % 2 * 2 + Lane() % 2) * kRowBytes),
        token_byte_((T::kWeights + FirstToken(T::kBlocksN > 1 ? Lane() / 16 : 0) + Lane() % 8) * kRowBytes) {}

  // Blocks of this warp that hold any of `tokens` tokens. The warps take blocks of 8 in turn, so that the last tile of
  // an expert costs all of them what its tokens cost, and not some of them a full tile.
  __device__ int BlocksFor(int tokens) const { return (tokens - warp_n_ * 8 + kTokenStride - 1) / kTokenStride; }

  __device__ void Clear() {
#pragma unroll
    for (int m = 0; m < T::kBlocksM; ++m) {
#pragma unroll
      for (int n = 0; n < T::kBlocksN; ++n) sum_[m][n][0] = sum_[m][n][1] = sum_[m][n][2] = sum_[m][n][3] = 0.0f;
    }
  }

  // Fetches the fragments of `step` from the stage at `stage`. The rows that a lane names all have the hash Lane() % 8.
  __device__ void Fetch(std::uint32_t stage, int step) {
    const std::uint32_t weights = stage + weight_byte_ + ((2 * step + Lane() / 16) ^ (Lane() % 8)) * 16;
    const std::uint32_t tokens = stage + token_byte_ + ((2 * step + Lane() / 8 % 2) ^ (Lane() % 8)) * 16;
    auto& a = a_[step % 2];
    auto& b = b_[step % 2];
#pragma unroll
    for (int m = 0; m < T::kBlocksM; ++m) {
      // Row 8 c + 2 j + b of 32: a pair of blocks is 32 rows, its second block has j + 2.
      LoadMatrices4(weights + (m / 2 * 32 + m % 2 * 4) * kRowBytes, a[m][0], a[m][1], a[m][2], a[m][3]);
    }
    if constexpr (T::kBlocksN == 1) {
      LoadMatrices2(tokens, b[0][0], b[0][1]);
    } else {
#pragma unroll
      for (int n = 0; n < T::kBlocksN; n += 2) {
        LoadMatrices4(tokens + n * kTokenStride * kRowBytes, b[n][0], b[n][1], b[n + 1][0], b[n + 1][1]);
      }
    }
  }

  // The first `blocks` blocks of tokens.
  __device__ void Multiply(int step, int blocks) {
    if (blocks >= T::kBlocksN) {
#pragma unroll
      for (int n = 0; n < T::kBlocksN; ++n) MultiplyBlock(step, n);
    } else {
#pragma unroll
      for (int n = 0; n < T::kBlocksN - 1; ++n) {
        if (n < blocks) MultiplyBlock(step, n);
      }
    }
  }

  // Rounds and writes; positions that gather skips are left alone.
  template <typename Out>
  __device__ void Write(const GroupedGemmLaunch& launch, const GroupTile& tile) const {
    const std::int64_t first =
        std::int64_t{tile.weight_tile} * T::kWeights + warp_m_ * T::kBlocksM * 16 + Lane() % 4 * 8;
#pragma unroll
    for (int n = 0; n < T::kBlocksN; ++n) {
      const int token = FirstToken(n) + Lane() / 4;
      const int position = tile.first_position + token;
      const bool wanted = token < tile.positions && (launch.gather == nullptr || launch.gather[position] >= 0);
      Out* const row = static_cast<Out*>(launch.out) + position * launch.out_features;
#pragma unroll
      for (int m = 0; m < T::kBlocksM; m += 2) {
        Pack<Out, 8> pack;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const float(&sum)[4] = sum_[m + j / 2][n];
          const float first_token = sum[j % 2 * 2], second_token = sum[j % 2 * 2 + 1];
          if constexpr (sizeof(Out) == 2) {
            pack.word[j] = TransposeMatrix(PackBf16(first_token, second_token));
          } else {  // as two matrices of halves
            const unsigned a = __float_as_uint(first_token), b = __float_as_uint(second_token);
            const std::uint32_t low = TransposeMatrix(__byte_perm(a, b, 0x5410));
            const std::uint32_t high = TransposeMatrix(__byte_perm(a, b, 0x7632));
            pack.word[2 * j] = __byte_perm(low, high, 0x5410);
            pack.word[2 * j + 1] = __byte_perm(low, high, 0x7632);
          }
        }
        if (wanted) WriteFeatures(row, first + m * 16, launch.out_features, pack);
      }
    }
  }

 private:
  static constexpr int kTokenStride = T::kShape.warps_n * 8;  // from a warp's block to its next

  __device__ int FirstToken(int block) const { return block * kTokenStride + warp_n_ * 8; }

  __device__ void MultiplyBlock(int step, int n) {
#pragma unroll
    for (int m = 0; m < T::kBlocksM; ++m) MultiplyAdd(sum_[m][n], a_[step % 2][m], b_[step % 2][n]);
  }

  template <typename Out>
  __device__ static void WriteFeatures(Out* row, std::int64_t feature, std::int64_t features,
                                       const Pack<Out, 8>& pack) {
    if (features % 8 == 0) {
      if (feature < features) StorePack(row + feature, pack);
      return;
    }
    float value[8];
    Unpack<Out, 8>(pack, value);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (feature + i >= features) return;
      row[feature + i] = FromFloat<Out>(value[i]);
    }
  }

  const int warp_m_, warp_n_;
  const int weight_byte_, token_byte_;  // of the rows whose addresses this lane gives, within a stage
  std::uint32_t a_[2][T::kBlocksM][4], b_[2][T::kBlocksN][2];
  float sum_[T::kBlocksM][T::kBlocksN][4];
};

template <GemmTile kTile, typename Out>
__global__ void __launch_bounds__(Tile<kTile>::kThreads, Tile<kTile>::kShape.blocks)
    GroupedGemmKernel(const __grid_constant__ GroupedGemmLaunch launch) {
  using T = Tile<kTile>;
  extern __shared__ __align__(128) unsigned char memory[];  // the stages, then where each expert's tiles begin
  TileSchedule schedule;
  const auto weight_tiles = static_cast<int>((launch.out_features + T::kWeights - 1) / T::kWeights);
  schedule.Build<T::kThreads>(launch.offsets, static_cast<int>(launch.experts), T::kTokens, weight_tiles,
                              reinterpret_cast<std::int32_t*>(memory + T::kStages * T::kStageBytes));

  if (schedule.tiles() <= blockIdx.x) return;

  const std::uint32_t shared = SharedAddress(memory);
  Loader<kTile> loader(launch, schedule, shared);
#pragma unroll 1
  for (int i = 0; i + 1 < T::kStages; ++i) loader.LoadStage();
  // The oldest stage has arrived, for everybody; and nobody reads the one before it any more.
  const auto next_stage = [&] {
    WaitCopies<T::kStages - 2>();
    __syncthreads();
  };

  WarpTile<kTile> warp;
  next_stage();
  warp.Fetch(shared, 0);
  loader.LoadStage();
  int slot = 0;
  for (std::int64_t index = blockIdx.x; index < schedule.tiles(); index += gridDim.x) {
    const GroupTile tile = schedule.At(index);
    const int blocks = warp.BlocksFor(tile.positions);
    warp.Clear();
    for (std::int64_t k = 0; k < launch.in; k += kGemmK) {
      const std::uint32_t stage = shared + slot * T::kStageBytes;
      slot = slot + 1 == T::kStages ? 0 : slot + 1;
#pragma unroll
      for (int step = 0; step < warp.kSteps; ++step) {
        if (step + 1 < warp.kSteps) {
          warp.Fetch(stage, step + 1);
        } else {
          next_stage();  // of this tile or of the next; after the last, stale bytes that nothing multiplies
          warp.Fetch(shared + slot * T::kStageBytes, 0);
          loader.LoadStage();
        }
        warp.Multiply(step, blocks);
      }
    }
    warp.template Write<Out>(launch, tile);
  }
}

template <GemmTile kTile>
int Launch(const GroupedGemmLaunch& launch, cudaStream_t stream) {
  const int shared = GemmSharedBytes(kTile, launch.experts);
  const auto kernel = launch.wide_out ? GroupedGemmKernel<kTile, float> : GroupedGemmKernel<kTile, bf16>;
  const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  kernel<<<launch.blocks, Tile<kTile>::kThreads, shared, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace

int LaunchGroupedGemm(const GroupedGemmLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (launch.tile) {
    case GemmTile::k64x8:
      return Launch<GemmTile::k64x8>(launch, stream);
    case GemmTile::k64x32:
      return Launch<GemmTile::k64x32>(launch, stream);
    case GemmTile::k128x64:
      return Launch<GemmTile::k128x64>(launch, stream);
    case GemmTile::k128x128:
      return Launch<GemmTile::k128x128>(launch, stream);
    case GemmTile::k256x128:
      return Launch<GemmTile::k256x128>(launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace expertd::cuda
