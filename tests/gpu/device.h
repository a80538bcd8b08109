// Device memory and streams for tests and benchmarks: every CUDA call checked, allocations of the exact size (so that a
// memory checker sees an element too far), outputs poisoned.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "kernels/cuda/ops.h"

namespace expertd::testing {

inline void CheckCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::abort();
}
#define EXPERTD_CHECK_CUDA(call) ::expertd::testing::CheckCuda((call), #call)

inline bool HasDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

// Owns `count` elements on the device. Fresh memory holds 0x7e bytes: a huge bf16 or f32, no index and no count.
template <typename T>
class DeviceArray {
 public:
  explicit DeviceArray(std::int64_t count, bool poison = true) : count_(count) {
    if (count == 0) return;
    EXPERTD_CHECK_CUDA(cudaMalloc(reinterpret_cast<void**>(&data_), Bytes()));
    if (poison) EXPERTD_CHECK_CUDA(cudaMemset(data_, 0x7e, Bytes()));
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(static_cast<std::int64_t>(host.size())) {
    if (count_ > 0) EXPERTD_CHECK_CUDA(cudaMemcpy(data_, host.data(), Bytes(), cudaMemcpyHostToDevice));
  }
  DeviceArray(DeviceArray&& other) noexcept : count_(other.count_), data_(other.data_) { other.data_ = nullptr; }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  ~DeviceArray() {
    if (data_ != nullptr) cudaFree(data_);
  }

  T* data() const { return data_; }
  std::size_t Bytes() const { return static_cast<std::size_t>(count_) * sizeof(T); }
  // Waits for the device.
  std::vector<T> Host() const {
    std::vector<T> host(static_cast<std::size_t>(count_));
    EXPERTD_CHECK_CUDA(cudaDeviceSynchronize());
    if (count_ > 0) EXPERTD_CHECK_CUDA(cudaMemcpy(host.data(), data_, Bytes(), cudaMemcpyDeviceToHost));
    return host;
  }

 private:
  std::int64_t count_;
  T* data_ = nullptr;
};

// Scratch memory of the size that an op asks for with these arguments. Left as it is when small tests are wanted, so
// that compute-sanitizer's initcheck sees what an op reads before it has written it.
class DeviceWorkspace {
 public:
  explicit DeviceWorkspace(std::int64_t bytes)
      : memory_(bytes, std::getenv("EXPERTD_GPU_TESTS") == nullptr), bytes_(bytes) {}
  template <typename Args>
  static DeviceWorkspace For(const Args& args) {
    return DeviceWorkspace(cuda::WorkspaceBytes(args));
  }
  operator cuda::Workspace() const { return {memory_.data(), bytes_}; }  // NOLINT: handed to ops as it is

 private:
  DeviceArray<std::byte> memory_;
  std::int64_t bytes_;
};

class DeviceStream {
 public:
  DeviceStream() { EXPERTD_CHECK_CUDA(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  DeviceStream(const DeviceStream&) = delete;
  DeviceStream& operator=(const DeviceStream&) = delete;
  ~DeviceStream() { cudaStreamDestroy(stream_); }

  cudaStream_t get() const { return stream_; }
  operator cuda::Stream() const { return {stream_}; }  // NOLINT: handed to ops as it is

 private:
  cudaStream_t stream_ = nullptr;
};

// What `enqueue` puts on `stream`, as a graph that can be replayed.
class DeviceGraph {
 public:
  template <typename Enqueue>
  DeviceGraph(const DeviceStream& stream, const Enqueue& enqueue) {
    cudaGraph_t graph = nullptr;
    EXPERTD_CHECK_CUDA(cudaStreamBeginCapture(stream.get(), cudaStreamCaptureModeThreadLocal));
    enqueue();
    EXPERTD_CHECK_CUDA(cudaStreamEndCapture(stream.get(), &graph));
    EXPERTD_CHECK_CUDA(cudaGraphInstantiate(&graph_, graph, 0));
    EXPERTD_CHECK_CUDA(cudaGraphDestroy(graph));
  }
  DeviceGraph(const DeviceGraph&) = delete;
  DeviceGraph& operator=(const DeviceGraph&) = delete;
  ~DeviceGraph() { cudaGraphExecDestroy(graph_); }

  void Replay(const DeviceStream& stream) const { EXPERTD_CHECK_CUDA(cudaGraphLaunch(graph_, stream.get())); }

 private:
  cudaGraphExec_t graph_ = nullptr;
};

}  // namespace expertd::testing
