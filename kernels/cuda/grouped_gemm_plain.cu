// moe_grouped_gemm in f32 arithmetic, for f32 rows and for shapes that the tensor cores do not take: simple and right.
// 32 positions x 32 features a tile, 32 of K at a time in shared memory, every sum one chain of fused multiply-adds in
// the order of K.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/tile_schedule.cuh"
#include "kernels/cuda/weight_codes.cuh"

namespace expertd::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kRowsAtOnce = kThreads / kTile;

// Scales that are infinite in the fused kernel are NaN here.
__device__ std::uint8_t UnpackedFp4Scale(std::uint8_t packed) {
  return packed == 255 ? packed : static_cast<std::uint8_t>(packed - kFp4ScaleOffset);
}

// The same element of weights that were packed for Hopper's fused kernel, whose layer also takes f32 rows.
template <WeightCode kCode>
__device__ float PackedAt(const GroupedGemmLaunch& launch, std::int64_t row, std::int64_t k) {
  constexpr PackedBlock kBlock = {kCode};
  const PackedRow place = PlaceOfRow(launch.packing, row % launch.out_features, launch.out_features);
  const auto* const block = static_cast<const std::uint8_t*>(launch.w) +
                            row / launch.out_features * PackedBytes(kCode, launch.out_features, launch.in) +
                            (place.tile * PackedSteps(launch.in) + k / kPackedK) * kBlock.bytes();
  const std::uint8_t* const line = block + kBlock.LineAt(place.line, k);
  const auto* const scales = reinterpret_cast<const float*>(block + kBlock.scales_at());  // of fp8
  const int within = static_cast<int>(k % kBlock.line_k());
  if constexpr (kCode == WeightCode::kBF16) {
    return ToFloat(*reinterpret_cast<const bf16*>(line + Bf16Byte(place.line, within)));
  } else if constexpr (kCode == WeightCode::kFp8) {
    return Fp8ToFloat(line[Fp8Byte(within)]) * scales[place.line % 16 / 8];
  } else if constexpr (kCode == WeightCode::kFp8Both) {
    return Fp8ToFloat(line[Fp8BothByte(place.line, within)]) * scales[place.line % 16 / 8];
  } else {
    return Fp4ToFloat(Fp4Code(line, within)) *
           E8m0ToFloat(UnpackedFp4Scale(block[place.line * 4 + Fp4ScaleByte(k / 32 % 4)]));
  }
}

// Element k of row `row` of all experts' rows.
template <WeightCode kCode>
__device__ float WeightAt(const GroupedGemmLaunch& launch, std::int64_t row, std::int64_t k) {
  const std::int64_t at = row * launch.in + k;
  if constexpr (kCode == WeightCode::kFp8Both) {
    return PackedAt<kCode>(launch, row, k);
  } else if constexpr (kCode == WeightCode::kBF16 || IsQuantised(kCode)) {
    if (launch.packing != Packing::kNone) return PackedAt<kCode>(launch, row, k);
  }
  if constexpr (kCode == WeightCode::kBF16) return ToFloat(static_cast<const bf16*>(launch.w)[at]);
  if constexpr (kCode == WeightCode::kF16) return __half2float(static_cast<const __half*>(launch.w)[at]);
  if constexpr (kCode == WeightCode::kF32) return static_cast<const float*>(launch.w)[at];
  if constexpr (kCode == WeightCode::kFp8) {
    const float* const scales = static_cast<const float*>(launch.scales) + row * ((launch.in + 127) / 128);
    return Fp8ToFloat(static_cast<const std::uint8_t*>(launch.w)[at]) * scales[k / 128];
  }
  if constexpr (kCode == WeightCode::kMxfp4) {
    const std::uint8_t pair = static_cast<const std::uint8_t*>(launch.w)[at / 2];
    const std::uint8_t scale = static_cast<const std::uint8_t*>(launch.scales)[at / 32];
    return Fp4ToFloat(k % 2 == 0 ? pair & 15 : pair >> 4) * E8m0ToFloat(scale);
  }
}

template <typename T, typename Out, WeightCode kCode>
__global__ void __launch_bounds__(kThreads) PlainKernel(const __grid_constant__ GroupedGemmLaunch launch) {
  extern __shared__ std::int32_t starts[];
  __shared__ float x[kTile][kTile], w[kTile][kTile + 1];  // [row][k]; the odd pitch spreads columns over the banks
  TileSchedule schedule;
  schedule.Build<kThreads>(launch.offsets, static_cast<int>(launch.experts), kTile,
                           static_cast<int>((launch.out_features + kTile - 1) / kTile), starts);
  const int column = threadIdx.x % kTile, first_row = threadIdx.x / kTile;
  for (std::int64_t index = blockIdx.x; index < schedule.tiles(); index += gridDim.x) {
    const GroupTile tile = schedule.At(index);
    const std::int64_t first_feature = std::int64_t{tile.weight_tile} * kTile;
    std::int64_t source[kTile / kRowsAtOnce];  // x row of each position that this thread copies and sums
    float sum[kTile / kRowsAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
      const int row = first_row + i * kRowsAtOnce, position = tile.first_position + row;
      source[i] = row >= tile.positions ? -1 : launch.gather == nullptr ? position : launch.gather[position];
      if (source[i] >= 0) source[i] /= launch.rows_divisor;
    }
    for (std::int64_t k = 0; k < launch.in; k += kTile) {
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
        const int row = first_row + i * kRowsAtOnce;
        const std::int64_t feature = first_feature + row;
        const bool inside = k + column < launch.in;
        x[row][column] = inside && source[i] >= 0
                             ? ToFloat(static_cast<const T*>(launch.x)[source[i] * launch.in + k + column])
                             : 0.0f;
        w[row][column] = inside && feature < launch.out_features
                             ? WeightAt<kCode>(launch, tile.expert * launch.out_features + feature, k + column)
                             : 0.0f;
      }
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kTile; ++j) {
#pragma unroll
        for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
          sum[i] = fmaf(x[first_row + i * kRowsAtOnce][j], w[column][j], sum[i]);
        }
      }
    }
    if (first_feature + column >= launch.out_features) continue;
#pragma unroll
    for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
      const std::int64_t position = tile.first_position + first_row + i * kRowsAtOnce;
      if (source[i] < 0) continue;
      static_cast<Out*>(launch.out)[position * launch.out_features + first_feature + column] = FromFloat<Out>(sum[i]);
    }
  }
}

template <typename T, typename Out>
int Launch(const GroupedGemmLaunch& launch, cudaStream_t stream) {
  const std::size_t starts = (launch.experts + 1) * sizeof(std::int32_t);
  const auto run = [&](auto kernel) {
    kernel<<<launch.blocks, kThreads, starts, stream>>>(launch);
    return cudaGetLastError();
  };
  switch (launch.weights) {
    case WeightCode::kElement:
      break;
    case WeightCode::kBF16:
      return run(PlainKernel<T, Out, WeightCode::kBF16>);
    case WeightCode::kF16:
      return run(PlainKernel<T, Out, WeightCode::kF16>);
    case WeightCode::kF32:
      return run(PlainKernel<T, Out, WeightCode::kF32>);
    case WeightCode::kFp8:
      return run(PlainKernel<T, Out, WeightCode::kFp8>);
    case WeightCode::kMxfp4:
      return run(PlainKernel<T, Out, WeightCode::kMxfp4>);
    case WeightCode::kFp8Both:
      return run(PlainKernel<T, Out, WeightCode::kFp8Both>);
  }
  return cudaErrorInvalidValue;
}

}  // namespace

int LaunchGroupedGemmPlain(const GroupedGemmLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.element == Element::kF32) return Launch<float, float>(launch, stream);
  return launch.wide_out ? Launch<bf16, float>(launch, stream) : Launch<bf16, bf16>(launch, stream);
}

}  // namespace expertd::cuda
