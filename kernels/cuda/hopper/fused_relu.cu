#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template int LaunchFusedGate<Gate::kRelu>(const FusedForwardLaunch& launch, void* stream);
template int LaunchFusedGate<Gate::kRelu2>(const FusedForwardLaunch& launch, void* stream);

}  // namespace expertd::cuda
