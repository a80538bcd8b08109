#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template int LaunchFusedGate<Gate::kSwigluOai>(const FusedForwardLaunch& launch, void* stream);

}  // namespace expertd::cuda
