// 256 threads a block: 16 groups of experts times 16 groups of rows, some of K at a time in shared memory.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/engine/router_gemm.h"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256, kGroups = 16;

// Sums chunk after chunk [first, last) of one tile of 16 * kExperts experts and 16 * kRows rows.
template <typename T, int kRows, int kExperts>
class RouterTile {
 public:
  // The smallest tile waits for memory rather than for arithmetic: a chunk of 256 in two steps.
  static constexpr int kStep = kRows * kExperts == 1 ? 128 : 32;
  static constexpr int kVector = 4, kPitch = kStep + kVector;  // rows of K begin in different banks

  __device__ RouterTile(const RouterGemmLaunch& launch, std::int64_t first_row, std::int64_t first_expert)
      : launch_(launch), first_row_(first_row), first_expert_(first_expert) {}

  __device__ void AddChunk(std::int64_t first, std::int64_t last) {
    __shared__ __align__(16) float x[kGroups * kRows][kPitch], w[kGroups * kExperts][kPitch];
    float chain[kRows][kExperts] = {};
    Fetch(first, last);
    for (std::int64_t k = first; k < last; k += kStep) {
      __syncthreads();
      Put(x, next_x_);
      Put(w, next_w_);
      __syncthreads();
      Fetch(k + kStep, last);  // on its way while this step is summed
#pragma unroll
      for (int j = 0; j < kStep; j += kVector) {
        float rows[kRows][kVector], experts[kExperts][kVector];
#pragma unroll
        for (int r = 0; r < kRows; ++r) Load<float, kVector>(&x[RowGroup() + r * kGroups][j], rows[r]);
#pragma unroll
        for (int e = 0; e < kExperts; ++e) Load<float, kVector>(&w[ExpertGroup() + e * kGroups][j], experts[e]);
#pragma unroll
        for (int i = 0; i < kVector; ++i) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int e = 0; e < kExperts; ++e) chain[r][e] = fmaf(rows[r][i], experts[e][i], chain[r][e]);
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

  // Each thread moves one element of K of every kRowsAtOnce-th row.
  static constexpr int kRowsAtOnce = kThreads / kStep;
  static constexpr int kXLoads = kGroups * kRows / kRowsAtOnce, kWLoads = kGroups * kExperts / kRowsAtOnce;

  __device__ void Fetch(std::int64_t k, std::int64_t last) {
    const std::int64_t at = k + threadIdx.x % kStep;
#pragma unroll
    for (int i = 0; i < kXLoads; ++i) {
      const std::int64_t n = first_row_ + threadIdx.x / kStep + i * kRowsAtOnce;
      next_x_[i] = at < last && n < launch_.n ? ToFloat(static_cast<const T*>(launch_.x)[n * launch_.d + at]) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < kWLoads; ++i) {
      const std::int64_t e = first_expert_ + threadIdx.x / kStep + i * kRowsAtOnce;
      next_w_[i] = at < last && e < launch_.e ? launch_.w[e * launch_.d + at] : 0.0f;
    }
  }
  template <int kHeight, int kLoads>
  __device__ static void Put(float (&to)[kHeight][kPitch], const float (&from)[kLoads]) {
#pragma unroll
    for (int i = 0; i < kLoads; ++i) to[threadIdx.x / kStep + i * kRowsAtOnce][threadIdx.x % kStep] = from[i];
  }

  const RouterGemmLaunch& launch_;
  const std::int64_t first_row_, first_expert_;
  float next_x_[kXLoads], next_w_[kWLoads];
  float sum_[kRows][kExperts] = {};
};

template <typename T>
__global__ void __launch_bounds__(kThreads)
    WholeKernel(const __grid_constant__ RouterGemmLaunch launch, std::int64_t chunk) {
  constexpr int kRows = 4, kExperts = 4;
  RouterTile<T, kRows, kExperts> tile(launch, std::int64_t{blockIdx.x} * kGroups * kRows,
                                      std::int64_t{blockIdx.y} * kGroups * kExperts);
  for (std::int64_t k = 0; k < launch.d; k += chunk) tile.AddChunk(k, min(k + chunk, launch.d));
  tile.Write([&](std::int64_t row, std::int64_t expert, float sum) {
    launch.out[row * launch.e + expert] = launch.bias == nullptr ? sum : sum + launch.bias[expert];
  });
}

template <typename T, int kRows, int kExperts>
__global__ void __launch_bounds__(kThreads)
    ChunkKernel(const __grid_constant__ RouterGemmLaunch launch, std::int64_t chunk) {
  RouterTile<T, kRows, kExperts> tile(launch, std::int64_t{blockIdx.x} * kGroups * kRows,
                                      std::int64_t{blockIdx.y} * kGroups * kExperts);
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
  const auto grid = [&](int rows, int experts, std::int64_t of_k) {
    return dim3(static_cast<unsigned>(CeilDiv(launch.n, kGroups * rows)),
                static_cast<unsigned>(CeilDiv(launch.e, kGroups * experts)), static_cast<unsigned>(of_k));
  };
  if (!RouterSplits(launch.n, launch.e)) {
    WholeKernel<T><<<grid(4, 4, 1), kThreads, 0, stream>>>(launch, chunk);
    return cudaGetLastError();
  }
  // Smaller tiles keep more of the device busy, larger ones read less.
  constexpr std::int64_t kFewTiles = 1024, kFewRows = 512;
  const dim3 smallest = grid(1, 1, chunks);
  if (std::int64_t{smallest.x} * smallest.y * smallest.z <= kFewTiles) {
    ChunkKernel<T, 1, 1><<<smallest, kThreads, 0, stream>>>(launch, chunk);
  } else if (launch.n <= kFewRows) {
    ChunkKernel<T, 1, 4><<<grid(1, 4, chunks), kThreads, 0, stream>>>(launch, chunk);
  } else {
    ChunkKernel<T, 4, 4><<<grid(4, 4, chunks), kThreads, 0, stream>>>(launch, chunk);
  }
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
