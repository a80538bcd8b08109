#include "kernels/cuda/hopper/fused_kernel.cuh"
#include "kernels/cuda/hopper/stream_kernel.cuh"

namespace expertd::cuda {
namespace {

template <WeightCode kCode>
int LaunchStreamOf(const FusedForwardLaunch& launch, cudaStream_t stream) {
  const auto kernel = StreamKernel<kCode, EveryGate>;
  const StreamShared shape(kCode, launch.tokens, launch.positions, launch.experts, launch.blocks);
  const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.bytes);
  if (error != cudaSuccess) return error;
  return LaunchEarly(kernel, static_cast<unsigned>(launch.blocks), StreamBlock<kCode>::kThreads, shape.bytes, stream,
                     launch);
}

}  // namespace

int LaunchStream(const FusedForwardLaunch& launch, void* stream) {
  const auto handle = static_cast<cudaStream_t>(stream);
  if (launch.weights == WeightCode::kFp8) return LaunchStreamOf<WeightCode::kFp8>(launch, handle);
  if (launch.weights == WeightCode::kMxfp4) return LaunchStreamOf<WeightCode::kMxfp4>(launch, handle);
  return LaunchStreamOf<WeightCode::kBF16>(launch, handle);
}

}  // namespace expertd::cuda
