#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template <>
int LaunchFusedCodes<WeightCode::kFp8Both>(const FusedForwardLaunch& launch, void* stream) {
  using enum FusedTileId;
  return LaunchOneOf<EveryGate, kSomeFp8Both, kManyFp8Both>(launch, stream);
}

}  // namespace expertd::cuda
