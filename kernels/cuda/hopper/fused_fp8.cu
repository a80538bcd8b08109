#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template <>
int LaunchFusedCodes<WeightCode::kFp8>(const FusedForwardLaunch& launch, void* stream) {
  using enum FusedTileId;
  return LaunchOneOf<EveryGate, kFewFp8, kSomeFp8, kManyFp8>(launch, stream);
}

}  // namespace expertd::cuda
