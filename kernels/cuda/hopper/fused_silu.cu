#include "kernels/cuda/hopper/fused_kernel.cuh"

namespace expertd::cuda {

template int LaunchFusedGate<Gate::kSilu>(const FusedForwardLaunch& launch, void* stream);

}  // namespace expertd::cuda
