// Bound by memory. One thread takes one 16-byte vector of a row, so a warp covers 512 neighbouring bytes; rows that
// several slots share are read once (spread) or summed in registers (gather).
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/row_ops.h"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Rows, or vectors of one, that a thread has in flight at once: enough to cover the latency, few enough for 32
// registers of data.
constexpr int kInFlight = 8;

template <typename T, typename Out, int N>
__global__ void __launch_bounds__(kThreads)
    GatherReduceKernel(std::int64_t vectors, std::int64_t d, int k, const T* __restrict__ expert_out,
                       const std::int32_t* __restrict__ slot_row, const float* __restrict__ weights,
                       Out* __restrict__ out) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
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

// Elements of a packed row's tail from `offset` on: the id's bits, then zeros.
template <int N>
__device__ Pack<bf16, N> TailPack(std::int32_t id, std::int64_t offset) {
  Pack<bf16, N> pack = {};
  if constexpr (N == 1) {
    pack.word[0] = static_cast<std::uint16_t>(offset < 2 ? static_cast<std::uint32_t>(id) >> 16 * offset : 0);
  } else {
    pack.word[0] = static_cast<std::uint32_t>(id);  // the tail is one access
  }
  return pack;
}

// One vector of one row of `from`, to all its slots.
template <typename T, int N>
__device__ void SpreadVector(const SpreadRowsLaunch& launch, std::int64_t index) {
  const std::int64_t d = launch.d, pitch = d + launch.tail;
  const Split at = Divide(index, pitch / N);
  const std::int64_t column = at.remainder * N;
  const bool in_row = column < d;
  const int k = static_cast<int>(launch.k);
  T* const to = static_cast<T*>(launch.to);
  Pack<T, N> value;
  if (in_row) value = LoadPack<T, N>(static_cast<const T*>(launch.from) + at.quotient * d + column);
#pragma unroll 4
  for (int j = 0; j < k; ++j) {
    const std::int64_t slot = at.quotient * k + j;
    const std::int64_t row = launch.slot_row == nullptr ? slot : launch.slot_row[slot];
    if (row < 0) continue;
    Pack<T, N> result = value;
    if constexpr (sizeof(T) == 2) {
      if (!in_row) result = TailPack<N>(launch.tail_ids[slot], column - d);
    }
    if (launch.weights != nullptr) {  // Without weights the bits are copied, NaN payloads included.
      float x[N];
      Unpack(value, x);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] *= launch.weights[slot];
      result = MakePack<T, N>(x);
    }
    StorePack(to + row * pitch + column, result);
  }
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
__global__ void __launch_bounds__(kThreads)
    SpreadRowsKernel(const __grid_constant__ SpreadRowsLaunch launch, std::int64_t vectors, unsigned spreading) {
  if (blockIdx.x < spreading) {
    const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
    if (index < vectors) SpreadVector<T, N>(launch, index);
    return;
  }
  __shared__ bool named[kWarps];
  const std::int64_t first = std::int64_t{blockIdx.x - spreading} * kWarps, row = first + threadIdx.x / 32;
  FindNamed(launch, first, named);
  if (row >= launch.cleared || named[threadIdx.x / 32]) return;
  const float zeros[N] = {};
  T* const to = static_cast<T*>(launch.to) + row * launch.d;
  for (std::int64_t i = (threadIdx.x % 32) * N; i < launch.d; i += 32 * N) Store(to + i, zeros);
}

__global__ void __launch_bounds__(kThreads)
    MarkKernel(std::int64_t slots, const std::int32_t* __restrict__ slot_row, std::uint8_t* __restrict__ marks) {
  const std::int64_t slot = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (slot < slots && slot_row[slot] >= 0) marks[slot_row[slot]] = 1;
}

// A block takes one row of grad_out, reads it once for every kInFlight slots, and keeps their sums apart: first those
// of each thread, then over the warp, then over the warps.
template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    RoutingWeightGradKernel(std::int64_t d, int k, const T* __restrict__ expert_out, const T* __restrict__ grad_out,
                            const std::int32_t* __restrict__ slot_row, float* __restrict__ grad_weights) {
  __shared__ float parts[kInFlight][kWarps];
  const std::int64_t n = blockIdx.x;
  for (int first = 0; first < k; first += kInFlight) {
    std::int32_t row[kInFlight];
    float sum[kInFlight] = {};
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) row[j] = first + j < k ? slot_row[n * k + first + j] : -1;
    for (std::int64_t column = std::int64_t{threadIdx.x} * N; column < d; column += kThreads * N) {
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
#pragma unroll
    for (int j = 0; j < kInFlight; ++j) {
      const float warp_sum = WarpSum(sum[j]);
      if (threadIdx.x % 32 == 0) parts[j][threadIdx.x / 32] = warp_sum;
    }
    __syncthreads();
    if (threadIdx.x < kInFlight && first + threadIdx.x < k) {
      float total = 0;
      for (int warp = 0; warp < kWarps; ++warp) total += parts[threadIdx.x][warp];
      grad_weights[n * k + first + threadIdx.x] = total;
    }
    __syncthreads();
  }
}

unsigned Blocks(std::int64_t work, std::int64_t per_block) { return static_cast<unsigned>(CeilDiv(work, per_block)); }

// Calls body<T, N>() for the element type, with N elements of 16 bytes or one.
template <typename Body>
int Dispatch(Element element, bool vectorised, const Body& body) {
  if (element == Element::kBF16) {
    return vectorised ? body.template operator()<bf16, 8>() : body.template operator()<bf16, 1>();
  }
  return vectorised ? body.template operator()<float, 4>() : body.template operator()<float, 1>();
}

}  // namespace

int LaunchGatherReduce(const GatherReduceLaunch& launch, void* stream) {
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const auto run = [&]<typename Out>() -> int {
      const std::int64_t vectors = launch.n * (launch.d / N);
      GatherReduceKernel<T, Out, N><<<Blocks(vectors, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
          vectors, launch.d, static_cast<int>(launch.k), static_cast<const T*>(launch.expert_out), launch.slot_row,
          launch.weights, static_cast<Out*>(launch.out));
      return cudaGetLastError();
    };
    return launch.out_element == Element::kBF16 ? run.template operator()<bf16>() : run.template operator()<float>();
  });
}

int LaunchSpreadRows(const SpreadRowsLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.marks != nullptr) {
    const std::int64_t slots = launch.n * launch.k;
    const int error = cudaMemsetAsync(launch.marks, 0, static_cast<std::size_t>(launch.cleared), stream);
    if (error != cudaSuccess) return error;
    MarkKernel<<<Blocks(slots, kThreads), kThreads, 0, stream>>>(slots, launch.slot_row, launch.marks);
  }
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const std::int64_t vectors = launch.n * ((launch.d + launch.tail) / N);
    const unsigned spreading = Blocks(vectors, kThreads), clearing = Blocks(launch.cleared, kWarps);
    SpreadRowsKernel<T, N><<<spreading + clearing, kThreads, 0, stream>>>(launch, vectors, spreading);
    return cudaGetLastError();
  });
}

int LaunchRoutingWeightGrad(const RoutingWeightGradLaunch& launch, void* stream) {
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    RoutingWeightGradKernel<T, N><<<static_cast<unsigned>(launch.n), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        launch.d, static_cast<int>(launch.k), static_cast<const T*>(launch.expert_out),
        static_cast<const T*>(launch.grad_out), launch.slot_row, launch.grad_weights);
    return cudaGetLastError();
  });
}

}  // namespace expertd::cuda
