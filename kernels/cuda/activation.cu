// Bound by memory: forward moves 3 elements for each output, backward 5. One thread takes one 16-byte vector of gates
// and one of ups; with 2048 threads on a multiprocessor that keeps 64 KiB of loads in flight, twice what the memory's
// latency asks for.
#include <cuda_runtime.h>

#include "kernels/cuda/activation.h"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/gates.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256;

// Gates and ups of N neighbouring features of a row whose 2F elements start at `row`.
template <typename T, int N, bool kInterleaved>
struct Halves {
  float gate[N], up[N];

  __device__ void Read(const T* row, std::int64_t feature, std::int64_t f) {
    if constexpr (kInterleaved) {
      float both[2 * N];
      Load(row + 2 * feature, both);
#pragma unroll
      for (int i = 0; i < N; ++i) gate[i] = both[2 * i], up[i] = both[2 * i + 1];
    } else {
      Load(row + feature, gate);
      Load(row + f + feature, up);
    }
  }
  __device__ void Write(T* row, std::int64_t feature, std::int64_t f) const {
    if constexpr (kInterleaved) {
      float both[2 * N];
#pragma unroll
      for (int i = 0; i < N; ++i) both[2 * i] = gate[i], both[2 * i + 1] = up[i];
      Store(row + 2 * feature, both);
    } else {
      Store(row + feature, gate);
      Store(row + f + feature, up);
    }
  }
};

// Calls body with the gate as a compile-time constant: one uniform branch a thread, none an element.
template <typename Body>
__device__ void WithGate(Gate gate, const Body& body) {
  switch (gate) {
    case Gate::kSilu:
      return body.template Run<Gate::kSilu>();
    case Gate::kGelu:
      return body.template Run<Gate::kGelu>();
    case Gate::kGeluTanh:
      return body.template Run<Gate::kGeluTanh>();
    case Gate::kRelu:
      return body.template Run<Gate::kRelu>();
    case Gate::kRelu2:
      return body.template Run<Gate::kRelu2>();
    case Gate::kSwigluOai:
      return body.template Run<Gate::kSwigluOai>();
  }
}

template <int N>
struct Forward {
  const float (&gate)[N];
  const float (&up)[N];
  float (&out)[N];
  GateParams params;

  template <Gate kGate>
  __device__ void Run() const {
#pragma unroll
    for (int i = 0; i < N; ++i) out[i] = Activate<kGate>(gate[i], up[i], params);
  }
};

template <int N>
struct Backward {
  const float (&grad)[N];
  float (&gate)[N];
  float (&up)[N];
  GateParams params;

  template <Gate kGate>
  __device__ void Run() const {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const GateGrad d = ActivateGrad<kGate>(grad[i], gate[i], up[i], params);
      gate[i] = d.gate, up[i] = d.up;
    }
  }
};

template <typename T, int N, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) ForwardKernel(std::int64_t vectors, std::int64_t f, GateParams params,
                                                          const std::int32_t* held, const T* in, T* out) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= vectors) return;
  const Split at = Divide(index, f / N);
  if (held != nullptr && at.quotient >= *held) return;
  Halves<T, N, kInterleaved> x;
  x.Read(in + at.quotient * 2 * f, at.remainder * N, f);
  float result[N];
  WithGate(params.gate, Forward<N>{x.gate, x.up, result, params});
  Store(out + at.quotient * f + at.remainder * N, result);
}

// `in` and `grad_in` may be the same memory: a thread reads all that it overwrites before it writes.
template <typename T, int N, bool kInterleaved>
__global__ void __launch_bounds__(kThreads)
    BackwardKernel(std::int64_t vectors, std::int64_t f, GateParams params, const std::int32_t* held, const T* grad_out,
                   const T* in, T* grad_in) {
  const std::int64_t index = std::int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (index >= vectors) return;
  const Split at = Divide(index, f / N);
  if (held != nullptr && at.quotient >= *held) return;
  Halves<T, N, kInterleaved> x;
  x.Read(in + at.quotient * 2 * f, at.remainder * N, f);
  float grad[N];
  Load(grad_out + at.quotient * f + at.remainder * N, grad);
  WithGate(params.gate, Backward<N>{grad, x.gate, x.up, params});
  x.Write(grad_in + at.quotient * 2 * f, at.remainder * N, f);
}

template <typename T, int N, bool kInterleaved>
int Launch(const ActivationLaunch& launch, cudaStream_t stream) {
  const std::int64_t vectors = launch.m * (launch.f / N);
  const GateParams params = {launch.gate, launch.limit, launch.alpha};
  const auto blocks = static_cast<unsigned>(CeilDiv(vectors, kThreads));
  const T* in = static_cast<const T*>(launch.in);
  if (launch.grad_out == nullptr) {
    ForwardKernel<T, N, kInterleaved>
        <<<blocks, kThreads, 0, stream>>>(vectors, launch.f, params, launch.held, in, static_cast<T*>(launch.out));
  } else {
    BackwardKernel<T, N, kInterleaved><<<blocks, kThreads, 0, stream>>>(vectors, launch.f, params, launch.held,
                                                                        static_cast<const T*>(launch.grad_out), in,
                                                                        static_cast<T*>(launch.out));
  }
  return cudaGetLastError();
}

template <typename T>
int Dispatch(const ActivationLaunch& launch, void* stream_handle) {
  constexpr int kVector = 16 / sizeof(T);
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.vectorised) {
    return launch.interleaved ? Launch<T, kVector, true>(launch, stream) : Launch<T, kVector, false>(launch, stream);
  }
  return launch.interleaved ? Launch<T, 1, true>(launch, stream) : Launch<T, 1, false>(launch, stream);
}

}  // namespace

int LaunchActivation(const ActivationLaunch& launch, void* stream) {
  return launch.element == Element::kBF16 ? Dispatch<bf16>(launch, stream) : Dispatch<float>(launch, stream);
}

}  // namespace expertd::cuda
