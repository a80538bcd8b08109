// Programmatic dependent launch, for .cu files: a kernel whose blocks may start while the stream's last kernel still
// runs. It must call WaitForPrevious() before it touches memory. Hopper and newer.
#pragma once

#include <cuda_runtime.h>

namespace expertd::cuda {

// Whether the current device is one of those that kernels of sm_90a run on.
inline bool OnHopper() {
  int device = 0, major = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess && major == 9;
}

// Answers a cudaError_t.
template <typename... Parameters, typename... Arguments>
int LaunchEarly(void (*kernel)(Parameters...), unsigned blocks, unsigned threads, int shared_bytes, cudaStream_t stream,
                const Arguments&... arguments) {
  cudaLaunchAttribute early = {};
  early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  early.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(blocks);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = static_cast<std::size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &early;
  config.numAttrs = 1;
  return cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...);
}

}  // namespace expertd::cuda
