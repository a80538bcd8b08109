#include <cuda_runtime.h>

#include "kernels/cuda/hopper/fp8_rows.h"
#include "kernels/cuda/hopper/quantise.cuh"
#include "kernels/cuda/launch_early.h"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256, kLinesOfBlock = kThreads / kQuantisingLanes;

__global__ void __launch_bounds__(kThreads) QuantiseRowsKernel(const __grid_constant__ QuantiseRowsLaunch launch) {
  if (launch.fresh) WaitForPrevious();
  LaunchNext();
  const std::int64_t lines = CeilDiv(launch.d, kPackedK);
  const std::int64_t index = std::int64_t{blockIdx.x} * kLinesOfBlock + threadIdx.x / kQuantisingLanes;
  const std::int64_t row = index / lines, line = index % lines;
  const int eight = threadIdx.x % kQuantisingLanes;
  const std::int64_t column = line * kPackedK + eight * 8;
  uint4 values = {};
  if (row < launch.n && column < launch.d) {
    values = *reinterpret_cast<const uint4*>(static_cast<const std::uint16_t*>(launch.from) + row * launch.d + column);
  }
  const Fp8Eight quantised = QuantiseEight(values);
  if (row < launch.n) {
    auto* const codes = static_cast<unsigned char*>(launch.codes) + index * kPackedK + eight * 8;
    *reinterpret_cast<uint2*>(codes) = quantised.codes;
    if (eight == 0) launch.scales[line * launch.n + row] = quantised.scale;
  }
  WaitForPrevious();  // the next kernel waits for this one alone, and needs what the last one did
}

}  // namespace

int LaunchQuantiseRows(const QuantiseRowsLaunch& launch, void* stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv(launch.n * CeilDiv(launch.d, kPackedK), kLinesOfBlock));
  return LaunchEarly(QuantiseRowsKernel, blocks, kThreads, 0, static_cast<cudaStream_t>(stream), launch);
}

}  // namespace expertd::cuda
