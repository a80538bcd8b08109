#include <cuda_runtime.h>

#include "tests/bench/cuda/empty_kernel.h"

namespace expertd::bench {
namespace {

__global__ void EmptyKernel() {}

}  // namespace

void LaunchEmptyKernel(void* stream) { EmptyKernel<<<1, 1, 0, static_cast<cudaStream_t>(stream)>>>(); }

}  // namespace expertd::bench
