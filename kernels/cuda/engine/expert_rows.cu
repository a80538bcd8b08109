#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/engine/expert_rows.h"
#include "kernels/cuda/gates.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kVector = 8;  // elements of a thread where rows are whole vectors

// The blocks after the last row's bring the tables.
template <typename Unit>
__global__ void __launch_bounds__(kThreads) FetchRowsKernel(const __grid_constant__ FetchRowsLaunch launch) {
  const std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x, row = blockIdx.y;
  if (row == launch.n) {
    for (std::int64_t j = i; j < launch.bytes / 16; j += std::int64_t{gridDim.x} * kThreads) {
      static_cast<uint4*>(launch.to)[j] = static_cast<const uint4*>(launch.from)[j];
    }
    return;
  }
  const std::int64_t units = launch.row_bytes / static_cast<std::int64_t>(sizeof(Unit));
  if (i >= units) return;
  const auto* const from = reinterpret_cast<const Unit*>(launch.in_row[row]);
  static_cast<Unit*>(launch.x)[row * units + i] = from == nullptr ? Unit{} : from[i];
}

__global__ void StampKernel(std::uint64_t* at) { asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(*at)); }

__global__ void __launch_bounds__(kThreads) FillSlotsKernel(const __grid_constant__ FillSlotsLaunch launch) {
  const std::int64_t slot = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  for (std::int64_t i = slot; i < launch.cleared_count; i += std::int64_t{gridDim.x} * kThreads) launch.cleared[i] = 0;
  if (slot >= launch.n * launch.kc) return;
  const std::int64_t row = slot / launch.kc, k = slot % launch.kc;
  std::int64_t id = -1;
  float weight = 0.0f;
  if (row >= *launch.live) {
    // No slots.
  } else if (row >= launch.routed_rows) {
    const std::int64_t at = slot - launch.routed_rows * launch.kc;
    id = launch.given_ids[at];
    weight = launch.given_weights[at];
  } else if (k < launch.k) {
    id = launch.routed_ids[row * launch.k + k];
    weight = launch.routed_weights[row * launch.k + k];
  }
  const std::int64_t held = id - launch.first_expert;
  launch.ids[slot] = id >= 0 && held >= 0 && held < launch.held_experts ? static_cast<std::int32_t>(held) : -1;
  launch.weights[slot] = weight;
}

__device__ int ExpertOf(std::int64_t position, const std::int32_t* offsets, int experts) {
  int low = 0, high = experts;  // offsets[low] <= position < offsets[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (offsets[middle] <= position ? low : high) = middle;
  }
  return low;
}

template <int kCount>
__device__ void AddFloats(const float* from, float (&to)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] += from[i];
}

template <typename T, Gate kGate, int kCount>
__global__ void __launch_bounds__(kThreads) ActivationKernel(const __grid_constant__ ExpertActivationLaunch launch) {
  const std::int64_t position = blockIdx.x;
  const auto experts = static_cast<int>(launch.experts);
  if (position >= launch.offsets[experts]) return;
  const std::int64_t f = launch.f;
  const float* const in = launch.in + position * 2 * f;
  T* const out = static_cast<T*>(launch.out) + position * f;
  const float* const bias =
      launch.bias == nullptr ? nullptr : launch.bias + ExpertOf(position, launch.offsets, experts) * 2 * f;
  const GateParams params = {kGate, launch.limit, launch.alpha};
  for (std::int64_t i = threadIdx.x * kCount; i < f; i += kThreads * kCount) {
    float gate[kCount], up[kCount];
    Load<float, kCount>(in + i, gate);
    Load<float, kCount>(in + f + i, up);
    if (bias != nullptr) {
      AddFloats(bias + i, gate);
      AddFloats(bias + f + i, up);
    }
#pragma unroll
    for (int j = 0; j < kCount; ++j) gate[j] = Activate<kGate>(gate[j], up[j], params);
    Store<T, kCount>(out + i, gate);
  }
}

template <typename T, int kCount>
__global__ void __launch_bounds__(kThreads) CombineKernel(const __grid_constant__ CombineRowsLaunch launch) {
  const std::int64_t row = blockIdx.x, d = launch.d;
  const std::int64_t i = (std::int64_t{blockIdx.y} * kThreads + threadIdx.x) * kCount;
  const std::int64_t place = launch.out_row[row];
  if (i >= d || place == 0) return;
  float sum[kCount] = {}, term[kCount];
  const auto add = [&](float weight) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) sum[j] = fmaf(weight, term[j], sum[j]);
  };
  for (std::int64_t slot = row * launch.kc; slot < (row + 1) * launch.kc; ++slot) {
    const std::int64_t position = launch.positions[slot];
    if (position < 0) continue;
    Load<T, kCount>(static_cast<const T*>(launch.expert_out) + position * d + i, term);
    if (launch.down_bias != nullptr) AddFloats(launch.down_bias + launch.ids[slot] * d + i, term);
    add(launch.weights == nullptr ? 1.0f : launch.weights[slot]);
  }
  const std::int64_t shared = launch.shared_row == nullptr ? -1 : launch.shared_row[row];
  if (shared >= 0) {
    Load<T, kCount>(static_cast<const T*>(launch.shared_out) + shared * d + i, term);
    add(launch.shared_gate == nullptr ? 1.0f : 1.0f / (1.0f + expf(-launch.shared_gate[row])));
  }
  if (place & 1) {
    Store<bf16, kCount>(reinterpret_cast<bf16*>(place - 1) + i, sum);
  } else {
    Store<float, kCount>(reinterpret_cast<float*>(place) + i, sum);
  }
}

template <typename T, Gate kGate>
int RunActivation(const ExpertActivationLaunch& launch, cudaStream_t stream) {
  const auto blocks = static_cast<unsigned>(launch.positions);
  if (launch.f % kVector == 0) {
    ActivationKernel<T, kGate, kVector><<<blocks, kThreads, 0, stream>>>(launch);
  } else {
    ActivationKernel<T, kGate, 1><<<blocks, kThreads, 0, stream>>>(launch);
  }
  return cudaGetLastError();
}

template <typename T>
int RunActivation(const ExpertActivationLaunch& launch, cudaStream_t stream) {
  switch (launch.gate) {
    case Gate::kSilu:
      return RunActivation<T, Gate::kSilu>(launch, stream);
    case Gate::kGelu:
      return RunActivation<T, Gate::kGelu>(launch, stream);
    case Gate::kGeluTanh:
      return RunActivation<T, Gate::kGeluTanh>(launch, stream);
    case Gate::kRelu:
      return RunActivation<T, Gate::kRelu>(launch, stream);
    case Gate::kRelu2:
      return RunActivation<T, Gate::kRelu2>(launch, stream);
    case Gate::kSwigluOai:
      return RunActivation<T, Gate::kSwigluOai>(launch, stream);
  }
  return cudaErrorInvalidValue;
}

template <typename T>
int RunCombine(const CombineRowsLaunch& launch, cudaStream_t stream) {
  const int count = launch.d % kVector == 0 ? kVector : 1;
  const dim3 grid(static_cast<unsigned>(launch.n), static_cast<unsigned>(CeilDiv(launch.d, kThreads * count)));
  if (count == kVector) {
    CombineKernel<T, kVector><<<grid, kThreads, 0, stream>>>(launch);
  } else {
    CombineKernel<T, 1><<<grid, kThreads, 0, stream>>>(launch);
  }
  return cudaGetLastError();
}

}  // namespace

int LaunchFetchRows(const FetchRowsLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const std::int64_t unit = launch.vectorised ? 16 : 2;
  const dim3 grid(static_cast<unsigned>(CeilDiv(launch.row_bytes, kThreads * unit)),
                  static_cast<unsigned>(launch.n + 1));
  if (launch.vectorised) {
    FetchRowsKernel<uint4><<<grid, kThreads, 0, stream>>>(launch);
  } else {
    FetchRowsKernel<unsigned short><<<grid, kThreads, 0, stream>>>(launch);
  }
  return cudaGetLastError();
}

int LaunchStamp(std::uint64_t* at, void* stream) {
  StampKernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(at);
  return cudaGetLastError();
}

int LaunchFillSlots(const FillSlotsLaunch& launch, void* stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv(launch.n * launch.kc, kThreads));
  FillSlotsKernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

int LaunchExpertActivation(const ExpertActivationLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return launch.element == Element::kBF16 ? RunActivation<bf16>(launch, stream) : RunActivation<float>(launch, stream);
}

int LaunchCombineRows(const CombineRowsLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  return launch.element == Element::kBF16 ? RunCombine<bf16>(launch, stream) : RunCombine<float>(launch, stream);
}

}  // namespace expertd::cuda
