#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template <>
int LaunchFusedCodes<WeightCode::kMxfp4>(const FusedForwardLaunch& launch, void* stream) {
  using enum FusedTileId;
  return LaunchOneOf<EveryGate, kFewMxfp4, kSomeMxfp4, kManyMxfp4>(launch, stream);
}

}  // namespace expertd::cuda
