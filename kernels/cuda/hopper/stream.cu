#include "kernels/cuda/hopper/fused_kernel.cuh"
#include "kernels/cuda/hopper/stream_kernel.cuh"

namespace expertd::cuda {
namespace {

template <WeightCode kCode, int kTokens>
int LaunchStreamOf(const FusedForwardLaunch& launch, cudaStream_t stream) {
  constexpr StreamShape kShape = {kCode, kTokens};
  const auto kernel = StreamKernel<kCode, kTokens, EveryGate>;
  const StreamTables tables(kShape.warps(), launch.positions, launch.experts, launch.blocks);
  const int shared = StreamSharedBytes(kShape, tables);
  const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  return LaunchEarly(kernel, static_cast<unsigned>(launch.blocks), kShape.warps() * 32, shared, stream, launch);
}

template <WeightCode kCode>
int LaunchStreamOf(const FusedForwardLaunch& launch, void* stream) {
  const auto handle = static_cast<cudaStream_t>(stream);
  return launch.tokens <= 2 ? LaunchStreamOf<kCode, 2>(launch, handle)
                            : LaunchStreamOf<kCode, kUnitTokens>(launch, handle);
}

}  // namespace

int LaunchStream(const FusedForwardLaunch& launch, void* stream) {
  if (launch.weights == WeightCode::kFp8) return LaunchStreamOf<WeightCode::kFp8>(launch, stream);
  if (launch.weights == WeightCode::kMxfp4) return LaunchStreamOf<WeightCode::kMxfp4>(launch, stream);
  return LaunchStreamOf<WeightCode::kBF16>(launch, stream);
}

}  // namespace expertd::cuda
