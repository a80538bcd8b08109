#include <cuda_runtime.h>

#include "kernels/cuda/hopper/fused_forward.h"

namespace expertd::cuda {

int LaunchFusedForward(const FusedForwardLaunch& launch, void* stream) {
  if (ShapeOf(launch.tile).streams()) return LaunchStream(launch, stream);
  if (launch.weights == WeightCode::kFp8) return LaunchFusedCodes<WeightCode::kFp8>(launch, stream);
  if (launch.weights == WeightCode::kMxfp4) return LaunchFusedCodes<WeightCode::kMxfp4>(launch, stream);
  if (launch.weights == WeightCode::kFp8Both) return LaunchFusedCodes<WeightCode::kFp8Both>(launch, stream);
  switch (launch.gate) {
    case Gate::kSilu:
      return LaunchFusedGate<Gate::kSilu>(launch, stream);
    case Gate::kGelu:
      return LaunchFusedGate<Gate::kGelu>(launch, stream);
    case Gate::kGeluTanh:
      return LaunchFusedGate<Gate::kGeluTanh>(launch, stream);
    case Gate::kRelu:
      return LaunchFusedGate<Gate::kRelu>(launch, stream);
    case Gate::kRelu2:
      return LaunchFusedGate<Gate::kRelu2>(launch, stream);
    case Gate::kSwigluOai:
      return LaunchFusedGate<Gate::kSwigluOai>(launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace expertd::cuda
