// Bound by memory. One thread takes one 16-byte vector of a row, so a warp covers 512 neighbouring bytes; rows that
// several slots share are read once (spread) or summed in registers (gather).
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch_early.h"
#include "kernels/cuda/row_ops.cuh"
#include "kernels/cuda/row_ops_config.h"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = kRowThreads, kWarps = kRowWarps;

// Rows, or vectors of one, that a thread has in flight at once: enough to cover the latency, few enough for 32
// registers of data.
constexpr int kInFlight = 8;

// With kAhead maps are read before the wait for the last kernel.
template <typename T, typename Out, int N, bool kAhead>
__global__ void __launch_bounds__(kThreads)
    GatherReduceKernel(std::int64_t vectors, std::int64_t d, int k, const T* __restrict__ expert_out,
                       const std::int32_t* __restrict__ slot_row, const float* __restrict__ weights,
                       Out* __restrict__ out) {
  if constexpr (!kAhead) WaitForPrevious();
  const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index >= vectors) return;
  const Split at = Divide(index, d / N);
  const std::int64_t column = at.remainder * N;
  float sum[N] = {};
  for (int first = 0; first < k; first += kInFlight) {
    std::int32_t row[kInFlight];
    float weight[kInFlight];
    Pack<T, N> value[kInFlight];
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const bool exists = first + j < k;
      const std::int64_t slot = at.quotient * k + first + j;
      row[j] = exists ? slot_row[slot] : -1;
      weight[j] = exists && weights != nullptr ? weights[slot] : 1.0f;
    }
    if constexpr (kAhead) WaitForPrevious();
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (row[j] >= 0) value[j] = LoadPack<T, N>(expert_out + row[j] * d + column);
    }
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      if (row[j] < 0) continue;
      float x[N];
      Unpack(value[j], x);
#pragma unroll
      for (int i = 0; i < N; ++i) sum[i] = fmaf(weight[j], x[i], sum[i]);
    }
  }
  Store(out + at.quotient * d + column, sum);
}

// Which of the block's kWarps rows from `first` on a slot names; by the whole block.
__device__ void FindNamed(const SpreadRowsLaunch& launch, std::int64_t first, bool (&named)[kWarps]) {
  const std::int64_t row = first + threadIdx.x;
  if (threadIdx.x < kWarps) {
    bool is = false;
    if (row < launch.cleared && launch.counts != nullptr) {
      const Split at = Divide(row, launch.max_tokens);
      is = at.remainder < launch.counts[at.quotient];
    } else if (row < launch.cleared && launch.marks != nullptr) {
      is = launch.marks[row] != 0;
    }
    named[threadIdx.x] = is;
  }
  __syncthreads();
  if (launch.counts != nullptr || launch.marks != nullptr) return;
  for (std::int64_t slot = threadIdx.x; slot < launch.n * launch.k; slot += kThreads) {
    const std::int64_t relative = launch.slot_row[slot] - first;
    if (relative >= 0 && relative < kWarps) named[relative] = true;
  }
  __syncthreads();
}

// The first blocks spread, the others clear, a warp a row.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads, 8)  // 32 registers: as many rows in flight as fit
    SpreadRowsKernel(const __grid_constant__ SpreadRowsLaunch launch, std::int64_t vectors, unsigned spreading) {
  if (blockIdx.x < spreading) {
    const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (index >= vectors) return;
    const Split at = Divide(index, (launch.d + launch.tail) / N);
    const std::int64_t column = at.remainder * N;
    SpreadVector<T, N>(launch, at.quotient, column, LoadSpread<T, N>(launch, at.quotient, column), [&](int j) {
      const std::int64_t slot = at.quotient * launch.k + j;
      return launch.slot_row == nullptr ? slot : std::int64_t{launch.slot_row[slot]};
    });
    return;
  }
  __shared__ bool named[kWarps];
  const std::int64_t first = std::int64_t{blockIdx.x - spreading} * kWarps, row = first + threadIdx.x / 32;
  FindNamed(launch, first, named);
  if (row >= launch.cleared || named[threadIdx.x / 32]) return;
  ClearRow<T, N>(launch, row);
}

__global__ void __launch_bounds__(kThreads)
    MarkKernel(std::int64_t slots, const std::int32_t* __restrict__ slot_row, std::uint8_t* __restrict__ marks) {
  const std::int64_t slot = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (slot < slots && slot_row[slot] >= 0) marks[slot_row[slot]] = 1;
}

// Sums of eight values over the warp at once: of each pair of lanes, one goes on with the one half of the values and
// one with the other, so that all eight cost nine exchanges. Lanes 4 j .. 4 j + 3 get the sum of value j.
__device__ float WarpSumOfEach(const float (&value)[8]) {
  float four[4], two[2], one;
  const int lane = threadIdx.x % 32;
  const auto exchange = [lane](float low, float high, int step) {
    const bool upper = (lane & step) != 0;
    return (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, step);
  };
#pragma unroll
  for (int i = 0; i < 4; ++i) four[i] = exchange(value[i], value[i + 4], 16);
#pragma unroll
  for (int i = 0; i < 2; ++i) two[i] = exchange(four[i], four[i + 2], 8);
  one = exchange(two[0], two[1], 4);
  one += __shfl_xor_sync(0xffffffffu, one, 2);
  return one + __shfl_xor_sync(0xffffffffu, one, 1);
}

// A block takes one row of grad_out, reads it once for every kInFlight slots, and keeps their sums apart: first those
// of each thread, then over the warp, then over the warps.
template <typename T, int N>
__global__ void __launch_bounds__(kMaxDotThreads)
    RoutingWeightGradKernel(std::int64_t d, int k, const T* __restrict__ expert_out, const T* __restrict__ grad_out,
                            const std::int32_t* __restrict__ slot_row, float* __restrict__ grad_weights) {
  __shared__ float parts[kInFlight][kMaxDotThreads / 32];
  const std::int64_t n = blockIdx.x;
  for (int first = 0; first < k; first += kInFlight) {
    std::int32_t row[kInFlight];
    float sum[kInFlight] = {};
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) row[j] = first + j < k ? slot_row[n * k + first + j] : -1;
    for (std::int64_t column = std::int64_t{threadIdx.x} * N; column < d; column += blockDim.x * N) {
      const Pack<T, N> grad = LoadPack<T, N>(grad_out + n * d + column);
      Pack<T, N> value[kInFlight];
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        if (row[j] >= 0) value[j] = LoadPack<T, N>(expert_out + row[j] * d + column);
      }
      float x[N];
      Unpack(grad, x);
#pragma unroll
      for (int j = 0; j < kInFlight; ++j) {
        if (row[j] < 0) continue;
        float y[N];
        Unpack(value[j], y);
#pragma unroll
        for (int i = 0; i < N; ++i) sum[j] = fmaf(x[i], y[i], sum[j]);
      }
    }
    const float warp_sum = WarpSumOfEach(sum);
    if (threadIdx.x % 4 == 0) parts[threadIdx.x % 32 / 4][threadIdx.x / 32] = warp_sum;
    __syncthreads();
    if (threadIdx.x < kInFlight && first + threadIdx.x < k) {
      float total = 0;
      for (int warp = 0; warp < blockDim.x / 32; ++warp) total += parts[threadIdx.x][warp];
      grad_weights[n * k + first + threadIdx.x] = total;
    }
    if (first + kInFlight < k) __syncthreads();
  }
}

}  // namespace

int LaunchGatherReduce(const GatherReduceLaunch& launch, void* stream_handle) {
  return DispatchRows(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const auto run = [&]<typename Out>() -> int {
      const std::int64_t vectors = launch.n * (launch.d / N);
      const int threads = GatherThreads(vectors);
      const unsigned blocks = RowBlocks(vectors, threads);
      const auto stream = static_cast<cudaStream_t>(stream_handle);
      const int k = static_cast<int>(launch.k);
      const auto* const from = static_cast<const T*>(launch.expert_out);
      auto* const to = static_cast<Out*>(launch.out);
      if (launch.early) {
        const auto kernel =
            GatherAhead(vectors) ? GatherReduceKernel<T, Out, N, true> : GatherReduceKernel<T, Out, N, false>;
        return LaunchEarly(kernel, blocks, threads, 0, stream, vectors, launch.d, k, from, launch.slot_row,
                           launch.weights, to);
      }
      GatherReduceKernel<T, Out, N, false>
          <<<blocks, threads, 0, stream>>>(vectors, launch.d, k, from, launch.slot_row, launch.weights, to);
      return cudaGetLastError();
    };
    return launch.out_element == Element::kBF16 ? run.template operator()<bf16>() : run.template operator()<float>();
  });
}

int LaunchSpreadRows(const SpreadRowsLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.held.blocks > 0) return LaunchHeldRows(launch, stream_handle);
  if (launch.marks != nullptr) {
    const std::int64_t slots = launch.n * launch.k;
    const int error = cudaMemsetAsync(launch.marks, 0, static_cast<std::size_t>(launch.cleared), stream);
    if (error != cudaSuccess) return error;
    MarkKernel<<<RowBlocks(slots, kThreads), kThreads, 0, stream>>>(slots, launch.slot_row, launch.marks);
  }
  return DispatchRows(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const std::int64_t vectors = launch.n * ((launch.d + launch.tail) / N);
    const unsigned spreading = RowBlocks(vectors, kThreads), clearing = RowBlocks(launch.cleared, kWarps);
    SpreadRowsKernel<T, N><<<spreading + clearing, kThreads, 0, stream>>>(launch, vectors, spreading);
    return cudaGetLastError();
  });
}

int LaunchRoutingWeightGrad(const RoutingWeightGradLaunch& launch, void* stream) {
  return DispatchRows(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const int threads = DotThreads(launch.d / N);
    RoutingWeightGradKernel<T, N><<<static_cast<unsigned>(launch.n), threads, 0, static_cast<cudaStream_t>(stream)>>>(
        launch.d, static_cast<int>(launch.k), static_cast<const T*>(launch.expert_out),
        static_cast<const T*>(launch.grad_out), launch.slot_row, launch.grad_weights);
    return cudaGetLastError();
  });
}

}  // namespace expertd::cuda
