// Bound by memory. One thread takes one 16-byte vector of a row, so a warp covers 512 neighbouring bytes; rows that
// several slots share are read once (spread) or summed in registers (gather).
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/row_ops.h"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Slots whose rows are in flight at once: enough to cover the latency, few enough for 32 registers of data.
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

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    SpreadRowsKernel(std::int64_t vectors, std::int64_t d, std::int64_t pitch, int k, const T* __restrict__ from,
                     const std::int32_t* __restrict__ slot_row, const float* __restrict__ weights,
                     const std::int32_t* __restrict__ tail_ids, T* __restrict__ to) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= vectors) return;
  const Split at = Divide(index, pitch / N);
  const std::int64_t column = at.remainder * N;
  const bool in_row = column < d;
  Pack<T, N> value;
  if (in_row) value = LoadPack<T, N>(from + at.quotient * d + column);
#pragma unroll 4
  for (int j = 0; j < k; ++j) {
    const std::int64_t slot = at.quotient * k + j;
    const std::int64_t row = slot_row == nullptr ? slot : slot_row[slot];
    if (row < 0) continue;
    Pack<T, N> result = value;
    if constexpr (sizeof(T) == 2) {
      if (!in_row) result = TailPack<N>(tail_ids[slot], column - d);
    }
    if (weights != nullptr) {  // Without weights the bits are copied, NaN payloads included.
      float x[N];
      Unpack(value, x);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] *= weights[slot];
      result = MakePack<T, N>(x);
    }
    StorePack(to + row * pitch + column, result);
  }
}

// A warp sets one row of d elements to zero.
template <typename T, int N>
__device__ void ZeroRow(T* row, std::int64_t d) {
  const float zeros[N] = {};
  for (std::int64_t i = (threadIdx.x % 32) * N; i < d; i += 32 * N) Store(row + i, zeros);
}

__global__ void __launch_bounds__(kThreads)
    MarkKernel(std::int64_t slots, const std::int32_t* __restrict__ slot_row, std::uint8_t* __restrict__ marks) {
  const std::int64_t slot = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (slot < slots && slot_row[slot] >= 0) marks[slot_row[slot]] = 1;
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    ZeroUnnamedKernel(std::int64_t slots, std::int64_t r, std::int64_t d, const std::int32_t* __restrict__ slot_row,
                      const std::uint8_t* __restrict__ marks, T* __restrict__ to) {
  const std::int64_t first = std::int64_t{blockIdx.x} * kWarps, row = first + threadIdx.x / 32;
  __shared__ bool named[kWarps];
  if (threadIdx.x < kWarps)
    named[threadIdx.x] = marks != nullptr && first + threadIdx.x < r && marks[first + threadIdx.x];
  __syncthreads();
  if (marks == nullptr) {
    for (std::int64_t slot = threadIdx.x; slot < slots; slot += kThreads) {
      const std::int64_t relative = slot_row[slot] - first;
      if (relative >= 0 && relative < kWarps) named[relative] = true;
    }
    __syncthreads();
  }
  if (row < r && !named[threadIdx.x / 32]) ZeroRow<T, N>(to + row * d, d);
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    ZeroTailsKernel(std::int64_t max_tokens, std::int64_t d, const std::int32_t* __restrict__ counts,
                    T* __restrict__ to) {
  const std::int64_t expert = blockIdx.y, position = std::int64_t{blockIdx.x} * kWarps + threadIdx.x / 32;
  if (position >= counts[expert] && position < max_tokens) ZeroRow<T, N>(to + (expert * max_tokens + position) * d, d);
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads)
    RoutingWeightGradKernel(std::int64_t slots, std::int64_t d, int k, int warps_per_slot,
                            const T* __restrict__ expert_out, const T* __restrict__ grad_out,
                            const std::int32_t* __restrict__ slot_row, float* __restrict__ grad_weights) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, part = warp % warps_per_slot;
  const std::int64_t slot = std::int64_t{blockIdx.x} * (kWarps / warps_per_slot) + warp / warps_per_slot;
  const std::int64_t row = slot < slots ? slot_row[slot] : -1;
  float sum = 0;
  if (row >= 0) {
    const T* const a = expert_out + row * d;
    const T* const b = grad_out + slot / k * d;
#pragma unroll 4
    for (std::int64_t i = (part * 32 + lane) * N; i < d; i += warps_per_slot * 32 * N) {
      float x[N], y[N];
      Load(a + i, x);
      Load(b + i, y);
#pragma unroll
      for (int j = 0; j < N; ++j) sum = fmaf(x[j], y[j], sum);
    }
  }
  __shared__ float parts[kWarps];
  sum = WarpSum(sum);
  if (lane == 0) parts[warp] = sum;
  __syncthreads();
  if (lane == 0 && part == 0 && slot < slots) {
    for (int i = 1; i < warps_per_slot; ++i) sum += parts[warp + i];
    grad_weights[slot] = sum;
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

int LaunchSpreadRows(const SpreadRowsLaunch& launch, void* stream) {
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const std::int64_t pitch = launch.d + launch.tail, vectors = launch.n * (pitch / N);
    SpreadRowsKernel<T, N><<<Blocks(vectors, kThreads), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        vectors, launch.d, pitch, static_cast<int>(launch.k), static_cast<const T*>(launch.from), launch.slot_row,
        launch.weights, launch.tail_ids, static_cast<T*>(launch.to));
    return cudaGetLastError();
  });
}

int LaunchZeroUnnamed(const ZeroUnnamedLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.marks != nullptr) {
    const int error = cudaMemsetAsync(launch.marks, 0, static_cast<std::size_t>(launch.r), stream);
    if (error != cudaSuccess) return error;
    MarkKernel<<<Blocks(launch.slots, kThreads), kThreads, 0, stream>>>(launch.slots, launch.slot_row, launch.marks);
  }
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    ZeroUnnamedKernel<T, N><<<Blocks(launch.r, kWarps), kThreads, 0, stream>>>(
        launch.slots, launch.r, launch.d, launch.slot_row, launch.marks, static_cast<T*>(launch.to));
    return cudaGetLastError();
  });
}

int LaunchZeroTails(const ZeroTailsLaunch& launch, void* stream) {
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const dim3 grid(Blocks(launch.max_tokens, kWarps), static_cast<unsigned>(launch.e));
    ZeroTailsKernel<T, N><<<grid, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
        launch.max_tokens, launch.d, launch.counts, static_cast<T*>(launch.to));
    return cudaGetLastError();
  });
}

int LaunchRoutingWeightGrad(const RoutingWeightGradLaunch& launch, void* stream) {
  return Dispatch(launch.element, launch.vectorised, [&]<typename T, int N>() -> int {
    const std::int64_t slots = launch.n * launch.k;
    RoutingWeightGradKernel<T, N>
        <<<Blocks(slots, kWarps / launch.warps_per_slot), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(
            slots, launch.d, static_cast<int>(launch.k), launch.warps_per_slot,
            static_cast<const T*>(launch.expert_out), static_cast<const T*>(launch.grad_out), launch.slot_row,
            launch.grad_weights);
    return cudaGetLastError();
  });
}

}  // namespace expertd::cuda
