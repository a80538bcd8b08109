// out^T = W . x^T by tensor cores, persistent over the tiles of all experts.
//
// One pipeline runs through all tiles of a block: the loader is up to kStages steps of K ahead of the sums and goes on
// to the next tile while they finish this one, so a tile starts with its data there. Within a stage, the fragments of
// one step of 16 are on their way from shared memory while the tensor cores work on those before. A stage holds 64
// elements of K of the tile's weight rows and token rows, 128 bytes each, in 16-byte chunks whose place is rotated by a
// hash of the row so that ldmatrix meets every bank once.
//
// Quantised weights come as codes: each thread copies codes as it would copy bf16, and when they have arrived decodes
// those that it copied itself into one of two stages of bf16 weights, so that no barrier is added. e2m1 is decoded with
// its scale. Scales of fp8 have too many bits: the sums over 128 of K are scaled, and added up in a second set of sums.
//
// Weight rows may enter the product in any order; they enter so that, after one movmatrix for each 8x8 block of
// results, a lane holds 8 neighbouring features of one token and stores them as 16 bytes: rows 8 c + 2 j + b of 32 are
// row 8 j + 2 c + b of the product (c = lane % 4).
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/weight_codes.cuh"

namespace expertd::cuda {
namespace {

constexpr int kRowBytes = kGemmK * 2;
constexpr int kChunks = kRowBytes / 16;

template <GemmTile kTile, WeightCode kWeightCode = WeightCode::kBF16>
struct Tile {
  static constexpr WeightCode kCode = kWeightCode;
  static constexpr bool kDecodes = IsQuantised(kCode);
  static constexpr int kCodeBits = kCode == WeightCode::kMxfp4 ? 4
                                   : kCode == WeightCode::kFp8 ? 8
                                                               : 16;  // also the bytes of 8 elements
  static constexpr GemmTileShape kShape = ShapeOf(kTile);
  static constexpr int kWeights = kShape.weights, kTokens = kShape.tokens, kStages = kShape.stages;
  static constexpr int kThreads = kShape.warps_m * kShape.warps_n * 32;
  static constexpr int kRowsAtOnce = kThreads / kChunks;  // rows that all threads copy together
  static constexpr int kWeightCopies = kWeights / kRowsAtOnce;
  static constexpr int kTokenCopies = (kTokens + kRowsAtOnce - 1) / kRowsAtOnce;
  // Shared memory: the stages (weights or codes, scales, tokens), then two stages of decoded weights.
  static constexpr int kTokenOffset = kWeights * StageCodeBytes(kCode);
  static constexpr int kStageBytes = kTokenOffset + kTokens * kRowBytes;
  static constexpr int kDecodedBytes = kDecodes ? kWeights * kRowBytes : 0;
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
template <typename T>
class Loader {
 public:
  __device__ Loader(const GroupedGemmLaunch& launch, const TileSchedule& schedule, unsigned char* memory)
      : launch_(launch), schedule_(schedule), memory_(memory), shared_(SharedAddress(memory)), index_(blockIdx.x) {
    Prepare();
    NextTile();
  }

  // Starts the copies of one stage; commits a group also when there is nothing left, so that groups count stages.
  // A copy of nothing may name any address.
  __device__ void LoadStage() {
    StoreScales();
    if (has_tile_) {
      const bool inside = k_ + Chunk() * 8 < launch_.in;
      const std::uint32_t stage = shared_ + slot_ * T::kStageBytes;
      const std::uint32_t tokens = stage + T::kTokenOffset + TokenByte(Row(0), Chunk());
      const unsigned char* weight = weights_ + k_ * T::kCodeBits / 8;
#pragma unroll
      for (int i = 0; i < T::kWeightCopies; ++i) {
        const bool wanted = inside && Row(i) < weight_rows_;
        if constexpr (T::kDecodes) {
          CopyAsyncSmall<T::kCodeBits>(stage + OwnByte(i), weight, wanted);
        } else {
          // With 32 rows at once the hash is the same for all.
          const int byte = T::kRowsAtOnce % 32 == 0 ? WeightByte(Row(0), Chunk()) + i * T::kRowsAtOnce * kRowBytes
                                                    : WeightByte(Row(i), Chunk());
          CopyAsync(stage + byte, weight, wanted);
        }
        weight += T::kRowsAtOnce * launch_.in * T::kCodeBits / 8;
      }
      LoadScales(inside);
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

  // Decodes what this thread copied into stage `slot`, which has arrived, to the bf16 weights at `to`.
  __device__ void Decode(int slot, unsigned char* memory, unsigned char* to) const {
    const unsigned char* const stage = memory + slot * T::kStageBytes;
#pragma unroll
    for (int i = 0; i < T::kWeightCopies; ++i) {
      auto* const place = reinterpret_cast<uint4*>(to + WeightByte(Row(i), Chunk()));
      if constexpr (T::kCode == WeightCode::kFp8) {
        *place = Fp8ToBf16(*reinterpret_cast<const uint2*>(stage + OwnByte(i)));
      } else {
        *place = Fp4ToBf16(*reinterpret_cast<const unsigned*>(stage + OwnByte(i)), stage[OwnScale(i)]);
      }
    }
  }

 private:
  // Where in a stage this thread's codes and scales of copy i lie: nobody else reads them.
  __device__ static int OwnByte(int i) { return (i * T::kThreads + threadIdx.x) * T::kCodeBits; }
  __device__ static int OwnScale(int i) { return T::kWeights * kChunks * T::kCodeBits + i * T::kThreads + threadIdx.x; }

  // Scales, single bytes, cannot be copied asynchronously: they are stored when the next stage is loaded.
  __device__ void LoadScales(bool inside) {
    if constexpr (T::kCode == WeightCode::kMxfp4) {
      const std::int64_t row_scales = launch_.in / 32;
      const unsigned char* scale = scales_ + (k_ + Chunk() * 8) / 32;
#pragma unroll
      for (int i = 0; i < T::kWeightCopies; ++i) {
        loaded_scale_[i] = inside && Row(i) < weight_rows_ ? scale[i * T::kRowsAtOnce * row_scales] : 127;
      }
      scale_slot_ = slot_;
    }
  }
  __device__ void StoreScales() {
    if constexpr (T::kCode == WeightCode::kMxfp4) {
      if (scale_slot_ < 0) return;
#pragma unroll
      for (int i = 0; i < T::kWeightCopies; ++i) {
        memory_[scale_slot_ * T::kStageBytes + OwnScale(i)] = loaded_scale_[i];
      }
      scale_slot_ = -1;
    }
  }

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
    const std::int64_t row = next_.expert * launch_.out_features + feature + Row(0);
    weights_ = static_cast<const unsigned char*>(launch_.w) + (row * launch_.in + Chunk() * 8) * T::kCodeBits / 8;
    if constexpr (T::kCode == WeightCode::kMxfp4) {
      scales_ = static_cast<const unsigned char*>(launch_.scales) + row * (launch_.in / 32);
    }
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
  unsigned char* const memory_;
  const std::uint32_t shared_;  // the same
  std::int64_t index_;
  GroupTile next_;
  bool has_tile_ = false, has_next_ = false;
  int k_ = 0, slot_ = 0;
  const unsigned char* weights_ = nullptr;  // this thread's first row and chunk, K = 0
  const unsigned char* scales_ = nullptr;   // this thread's first row, K = 0
  std::uint8_t loaded_scale_[T::kWeightCopies];
  int scale_slot_ = -1;  // stage that they belong to; -1: none are waiting
  int weight_rows_ = 0;
  int token_row_[T::kTokenCopies], next_row_[T::kTokenCopies];
};

// One warp's part of a tile: its sums, and the fragments of two steps of 16 along K.
template <typename T>
class WarpTile {
 public:
  static constexpr int kSteps = kGemmK / 16;

  __device__ WarpTile()
      : warp_m_(threadIdx.x / 32 % T::kShape.warps_m),
        warp_n_(threadIdx.x / 32 / T::kShape.warps_m),
        weight_byte_((warp_m_ * T::kBlocksM * 16 + Lane() % 8 / 2 * 8 + Lane() / 8 % 2 * 2 + Lane() % 2) * kRowBytes),
        token_byte_((FirstToken(T::kBlocksN > 1 ? Lane() / 16 : 0) + Lane() % 8) * kRowBytes) {}

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
  __device__ void ClearTotals() {
#pragma unroll
    for (int m = 0; m < kTotalsM; ++m) {
#pragma unroll
      for (int n = 0; n < T::kBlocksN; ++n)
        total_[m][n][0] = total_[m][n][1] = total_[m][n][2] = total_[m][n][3] = 0.0f;
    }
  }

  // Fetches the fp8 scales of this lane's weight rows for the 128 of K that begin at k.
  __device__ void FetchScales(const GroupedGemmLaunch& launch, const GroupTile& tile, std::int64_t k) {
    const std::int64_t blocks = (launch.in + 127) / 128;
    const float* const scales =
        static_cast<const float*>(launch.scales) + tile.expert * launch.out_features * blocks + k / 128;
#pragma unroll
    for (int m = 0; m < kTotalsM; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int row =
            warp_m_ * T::kBlocksM * 16 + m / 2 * 32 + Lane() / 8 * 8 + (m % 2 * 2 + half) * 2 + Lane() / 4 % 2;
        const std::int64_t feature = std::int64_t{tile.weight_tile} * T::kWeights + row;
        scale_[m][half] = feature < launch.out_features ? scales[feature * blocks] : 0.0f;
      }
    }
  }
  // Adds the sums, scaled, to the totals and clears them.
  __device__ void Promote() {
#pragma unroll
    for (int m = 0; m < kTotalsM; ++m) {
#pragma unroll
      for (int n = 0; n < T::kBlocksN; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total_[m][n][i] = fmaf(sum_[m][n][i], scale_[m][i / 2], total_[m][n][i]);
      }
    }
    Clear();
  }

  // Fetches the fragments of `step` from a stage's weights and tokens. The rows that a lane names all have the hash
  // Lane() % 8.
  __device__ void Fetch(std::uint32_t stage_weights, std::uint32_t stage_tokens, int step) {
    const std::uint32_t weights = stage_weights + weight_byte_ + ((2 * step + Lane() / 16) ^ (Lane() % 8)) * 16;
    const std::uint32_t tokens = stage_tokens + token_byte_ + ((2 * step + Lane() / 8 % 2) ^ (Lane() % 8)) * 16;
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
          const float(&sum)[4] = kTotals ? total_[kTotals ? m + j / 2 : 0][n] : sum_[m + j / 2][n];
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
  static constexpr bool kTotals = T::kCode == WeightCode::kFp8;
  static constexpr int kTotalsM = kTotals ? T::kBlocksM : 1;
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
  float total_[kTotalsM][T::kBlocksN][4], scale_[kTotalsM][2];  // fp8
};

template <typename T, typename Out>
__global__ void __launch_bounds__(T::kThreads, T::kShape.blocks)
    GroupedGemmKernel(const __grid_constant__ GroupedGemmLaunch launch) {
  extern __shared__ __align__(128) unsigned char memory[];  // Tile's, then where each expert's tiles begin
  unsigned char* const decoded = memory + T::kStages * T::kStageBytes;
  TileSchedule schedule;
  const auto weight_tiles = static_cast<int>((launch.out_features + T::kWeights - 1) / T::kWeights);
  schedule.Build<T::kThreads>(launch.offsets, static_cast<int>(launch.experts), T::kTokens, weight_tiles,
                              reinterpret_cast<std::int32_t*>(decoded + 2 * T::kDecodedBytes));

  if (schedule.tiles() <= blockIdx.x) return;

  const std::uint32_t shared = SharedAddress(memory), shared_decoded = SharedAddress(decoded);
  Loader<T> loader(launch, schedule, memory);
#pragma unroll 1
  for (int i = 0; i + 1 < T::kStages; ++i) loader.LoadStage();

  int slot = 0, parity = 0;  // of the current stage: in the ring, and of its decoded weights
  // The oldest stage has arrived, for everybody; and nobody reads the one before it any more.
  const auto next_stage = [&] {
    WaitCopies<T::kStages - 2>();
    if constexpr (T::kDecodes) loader.Decode(slot, memory, decoded + parity * T::kDecodedBytes);
    __syncthreads();
  };
  const auto weights_at = [&] {
    return T::kDecodes ? shared_decoded + parity * T::kDecodedBytes : shared + slot * T::kStageBytes;
  };
  const auto tokens_at = [&] { return shared + slot * T::kStageBytes + T::kTokenOffset; };

  WarpTile<T> warp;
  next_stage();
  warp.Fetch(weights_at(), tokens_at(), 0);
  loader.LoadStage();
  for (std::int64_t index = blockIdx.x; index < schedule.tiles(); index += gridDim.x) {
    const GroupTile tile = schedule.At(index);
    const int blocks = warp.BlocksFor(tile.positions);
    warp.Clear();
    if constexpr (T::kCode == WeightCode::kFp8) warp.ClearTotals();
    for (std::int64_t k = 0; k < launch.in; k += kGemmK) {
      if constexpr (T::kCode == WeightCode::kFp8) {
        if (k % 128 == 0) warp.FetchScales(launch, tile, k);
      }
      const std::uint32_t weights = weights_at(), tokens = tokens_at();
      slot = slot + 1 == T::kStages ? 0 : slot + 1;
      parity ^= 1;
#pragma unroll
      for (int step = 0; step < warp.kSteps; ++step) {
        if (step + 1 < warp.kSteps) {
          warp.Fetch(weights, tokens, step + 1);
        } else {
          next_stage();  // of this tile or of the next; after the last, stale bytes that nothing multiplies
          warp.Fetch(weights_at(), tokens_at(), 0);
          loader.LoadStage();
        }
        warp.Multiply(step, blocks);
      }
      if constexpr (T::kCode == WeightCode::kFp8) {
        if (k % 128 != 0 || k + kGemmK >= launch.in) warp.Promote();
      }
    }
    warp.template Write<Out>(launch, tile);
  }
}

template <GemmTile kTile, WeightCode kCode = WeightCode::kBF16>
int Launch(const GroupedGemmLaunch& launch, cudaStream_t stream) {
  using T = Tile<kTile, kCode>;
  const int shared = GemmSharedBytes(kTile, launch.experts, kCode);
  const auto kernel = launch.wide_out ? GroupedGemmKernel<T, float> : GroupedGemmKernel<T, bf16>;
  const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  kernel<<<launch.blocks, T::kThreads, shared, stream>>>(launch);
  return cudaGetLastError();
}

template <WeightCode kCode>
int LaunchCodes(const GroupedGemmLaunch& launch, cudaStream_t stream) {
  switch (launch.tile) {
    case GemmTile::k64x8:
      return Launch<GemmTile::k64x8, kCode>(launch, stream);
    case GemmTile::k64x32:
      return Launch<GemmTile::k64x32, kCode>(launch, stream);
    case GemmTile::k128x64:
      return Launch<GemmTile::k128x64, kCode>(launch, stream);
    default:  // ChooseGemmTile stops there
      return cudaErrorInvalidValue;
  }
}

}  // namespace

int LaunchGroupedGemm(const GroupedGemmLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.weights == WeightCode::kFp8) return LaunchCodes<WeightCode::kFp8>(launch, stream);
  if (launch.weights == WeightCode::kMxfp4) return LaunchCodes<WeightCode::kMxfp4>(launch, stream);
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
