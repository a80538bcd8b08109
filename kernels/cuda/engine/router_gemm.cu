// 256 threads a block: 16 groups of 4 experts times 16 groups of rows, 32 of K at a time in shared memory.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/engine/router_gemm.h"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256, kGroups = 16, kExperts = 4, kStep = 32;

// Sums chunk after chunk [first, last) of one tile of 64 experts and 16 * kRows rows.
template <typename T, int kRows>
class RouterTile {
 public:
  __device__ RouterTile(const RouterGemmLaunch& launch, std::int64_t first_row, std::int64_t first_expert)
      : launch_(launch), first_row_(first_row), first_expert_(first_expert) {}

  __device__ void AddChunk(std::int64_t first, std::int64_t last) {
    __shared__ float x[kGroups * kRows][kStep + 1], w[kGroups * kExperts][kStep + 1];
    float chain[kRows][kExperts] = {};
    for (std::int64_t k = first; k < last; k += kStep) {
      __syncthreads();
      Fill(x, k, last, [&](int row, std::int64_t at) {
        const std::int64_t n = first_row_ + row;
        return n < launch_.n ? ToFloat(static_cast<const T*>(launch_.x)[n * launch_.d + at]) : 0.0f;
      });
      Fill(w, k, last, [&](int row, std::int64_t at) {
        const std::int64_t e = first_expert_ + row;
        return e < launch_.e ? launch_.w[e * launch_.d + at] : 0.0f;
      });
      __syncthreads();
#pragma unroll
      for (int j = 0; j < kStep; ++j) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int e = 0; e < kExperts; ++e) {
            chain[r][e] = fmaf(x[RowGroup() + r * kGroups][j], w[ExpertGroup() + e * kGroups][j], chain[r][e]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int e = 0; e < kExperts; ++e) sum_[r][e] += chain[r][e];
    }
  }

  // put(row, expert, sum) for every sum of this thread.
  template <typename Put>
  __device__ void Write(const Put& put) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int e = 0; e < kExperts; ++e) {
        const std::int64_t row = first_row_ + RowGroup() + r * kGroups;
        const std::int64_t expert = first_expert_ + ExpertGroup() + e * kGroups;
        if (row < launch_.n && expert < launch_.e) put(row, expert, sum_[r][e]);
      }
    }
  }

 private:
  __device__ static int ExpertGroup() { return threadIdx.x % kGroups; }
  __device__ static int RowGroup() { return threadIdx.x / kGroups; }

  template <int kHeight, typename Read>
  __device__ static void Fill(float (&to)[kHeight][kStep + 1], std::int64_t k, std::int64_t last, const Read& read) {
    const int column = threadIdx.x % kStep;
#pragma unroll
    for (int row = threadIdx.x / kStep; row < kHeight; row += kThreads / kStep) {
      to[row][column] = k + column < last ? read(row, k + column) : 0.0f;
    }
  }

  const RouterGemmLaunch& launch_;
  const std::int64_t first_row_, first_expert_;
  float sum_[kRows][kExperts] = {};
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    WholeKernel(const __grid_constant__ RouterGemmLaunch launch, std::int64_t chunk) {
  constexpr int kRows = 4;
  RouterTile<T, kRows> tile(launch, std::int64_t{blockIdx.x} * kGroups * kRows, blockIdx.y * kGroups * kExperts);
  for (std::int64_t k = 0; k < launch.d; k += chunk) tile.AddChunk(k, min(k + chunk, launch.d));
  tile.Write([&](std::int64_t row, std::int64_t expert, float sum) {
    launch.out[row * launch.e + expert] = launch.bias == nullptr ? sum : sum + launch.bias[expert];
  });
}

template <typename T>
__global__ void __launch_bounds__(kThreads)
    ChunkKernel(const __grid_constant__ RouterGemmLaunch launch, std::int64_t chunk) {
  RouterTile<T, 1> tile(launch, std::int64_t{blockIdx.x} * kGroups, blockIdx.y * kGroups * kExperts);
  const std::int64_t first = blockIdx.z * chunk;
  tile.AddChunk(first, min(first + chunk, launch.d));
  tile.Write([&](std::int64_t row, std::int64_t expert, float sum) {
    launch.partial[(blockIdx.z * launch.n + row) * launch.e + expert] = sum;
  });
}

__global__ void __launch_bounds__(kThreads) AddKernel(const __grid_constant__ RouterGemmLaunch launch, int chunks) {
  const std::int64_t count = launch.n * launch.e, i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (i >= count) return;
  float sum = 0.0f;
  for (int c = 0; c < chunks; ++c) sum += launch.partial[c * count + i];
  launch.out[i] = launch.bias == nullptr ? sum : sum + launch.bias[i % launch.e];
}

template <typename T>
int Launch(const RouterGemmLaunch& launch, cudaStream_t stream) {
  const std::int64_t chunk = RouterChunk(launch.d), chunks = CeilDiv(launch.d, chunk);
  const auto expert_tiles = static_cast<unsigned>(CeilDiv(launch.e, kGroups * kExperts));
  if (launch.n > kRouterSplitRows) {
    const dim3 grid(static_cast<unsigned>(CeilDiv(launch.n, kGroups * 4)), expert_tiles);
    WholeKernel<T><<<grid, kThreads, 0, stream>>>(launch, chunk);
    return cudaGetLastError();
  }
  const dim3 grid(static_cast<unsigned>(CeilDiv(launch.n, kGroups)), expert_tiles, static_cast<unsigned>(chunks));
  ChunkKernel<T><<<grid, kThreads, 0, stream>>>(launch, chunk);
  AddKernel<<<static_cast<unsigned>(CeilDiv(launch.n * launch.e, kThreads)), kThreads, 0, stream>>>(
      launch, static_cast<int>(chunks));
  return cudaGetLastError();
}

}  // namespace

int LaunchRouterGemm(const RouterGemmLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return launch.element == Element::kBF16 ? Launch<bf16>(launch, stream) : Launch<float>(launch, stream);
}

}  // namespace expertd::cuda
