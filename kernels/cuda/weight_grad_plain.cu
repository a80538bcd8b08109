// moe_weight_grad in f32 arithmetic, for f32 rows and for shapes that the tensor cores do not take: simple and right.
// One block computes 32 x 32 elements of one expert's gradient, 32 positions at a time in shared memory, every sum one
// chain of fused multiply-adds in the order of the positions.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/weight_grad.h"

namespace expertd::cuda {
namespace {

constexpr int kTile = 32;
constexpr int kThreads = 256;
constexpr int kRowsAtOnce = kThreads / kTile;

// Rows [first, last) of [*, pitch], columns from `column` on, zeros outside.
template <typename T>
__device__ void CopyTile(const void* rows, std::int64_t pitch, std::int64_t column, std::int64_t first,
                         std::int64_t last, float (&to)[kTile][kTile]) {
  for (int row = threadIdx.x / kTile; row < kTile; row += kRowsAtOnce) {
    const bool inside = first + row < last && column < pitch;
    to[row][threadIdx.x % kTile] = inside ? ToFloat(static_cast<const T*>(rows)[(first + row) * pitch + column]) : 0.0f;
  }
}

template <typename T, typename Grad>
__global__ void __launch_bounds__(kThreads) PlainKernel(const __grid_constant__ WeightGradLaunch launch) {
  __shared__ float grad_out[kTile][kTile], x[kTile][kTile];  // [position][feature]
  const int column = threadIdx.x % kTile, first_row = threadIdx.x / kTile;
  const std::int64_t tiles_in = (launch.in + kTile - 1) / kTile, tiles_out = (launch.out_features + kTile - 1) / kTile;
  for (std::int64_t index = blockIdx.x; index < launch.experts * tiles_in * tiles_out; index += gridDim.x) {
    const std::int64_t expert = index / (tiles_in * tiles_out), within = index % (tiles_in * tiles_out);
    const std::int64_t out = within / tiles_in * kTile, in = within % tiles_in * kTile;
    float sum[kTile / kRowsAtOnce] = {};
    const std::int64_t last = launch.offsets[expert + 1];
    for (std::int64_t position = launch.offsets[expert]; position < last; position += kTile) {
      __syncthreads();
      CopyTile<T>(launch.grad_out, launch.out_features, out + column, position, last, grad_out);
      CopyTile<T>(launch.x, launch.in, in + column, position, last, x);
      __syncthreads();
#pragma unroll
      for (int p = 0; p < kTile; ++p) {
#pragma unroll
        for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
          sum[i] = fmaf(grad_out[p][first_row + i * kRowsAtOnce], x[p][column], sum[i]);
        }
      }
    }
    if (in + column >= launch.in) continue;
#pragma unroll
    for (int i = 0; i < kTile / kRowsAtOnce; ++i) {
      const std::int64_t row = out + first_row + i * kRowsAtOnce;
      if (row >= launch.out_features) break;
      static_cast<Grad*>(launch.grad_w)[(expert * launch.out_features + row) * launch.in + in + column] =
          FromFloat<Grad>(sum[i]);
    }
  }
}

template <typename T>
int Launch(const WeightGradLaunch& launch, cudaStream_t stream) {
  if (launch.grad_element == Element::kBF16) {
    PlainKernel<T, bf16><<<launch.blocks, kThreads, 0, stream>>>(launch);
  } else {
    PlainKernel<T, float><<<launch.blocks, kThreads, 0, stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace

int LaunchWeightGradPlain(const WeightGradLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return launch.element == Element::kBF16 ? Launch<bf16>(launch, stream) : Launch<float>(launch, stream);
}

}  // namespace expertd::cuda
