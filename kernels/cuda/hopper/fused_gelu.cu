#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template int LaunchFusedGate<Gate::kGelu>(const FusedForwardLaunch& launch, void* stream);
template int LaunchFusedGate<Gate::kGeluTanh>(const FusedForwardLaunch& launch, void* stream);

}  // namespace expertd::cuda
