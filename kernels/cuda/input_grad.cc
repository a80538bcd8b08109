#include "kernels/cuda/input_grad.h"

#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/ragged_wgmma.h"
#include "kernels/cuda/ragged_wgmma_config.h"
#include "kernels/cuda/transpose.h"

namespace expertd::cuda {

std::int64_t InputGradScratch(const InputGrad& grad) {
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (device.ok() && UsesRaggedWgmma(*device, grad.element, grad.in, grad.out_features)) return 0;
  return grad.experts * grad.in * grad.out_features;
}

absl::Status EnqueueInputGrad(const InputGrad& grad, void* scratch, Stream stream) {
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  if (grad.positions == 0) return absl::OkStatus();
  if (UsesRaggedWgmma(*device, grad.element, grad.in, grad.out_features)) {
    if (!Aligned16({grad.grad_out, grad.w, grad.grad_x})) {
      return absl::InvalidArgumentError("gate_up, down: bf16 weights must be 16-byte aligned");
    }
    return FromCuda(LaunchRaggedWgmma({.sum = SumOver::kFeatures,
                                       .positions = grad.positions,
                                       .experts = grad.experts,
                                       .in = grad.in,
                                       .out_features = grad.out_features,
                                       .result_element = grad.element,
                                       .blocks = device->multiprocessors,
                                       .grad_out = grad.grad_out,
                                       .right = grad.w,
                                       .offsets = grad.offsets,
                                       .result = grad.grad_x},
                                      stream.handle),
                    "moe_backward: input gradient");
  }
  const int error =
      LaunchTranspose(grad.element, grad.experts, grad.out_features, grad.in, grad.w, scratch, stream.handle);
  if (error != 0) return FromCuda(error, "moe_backward: transposed weights");
  return EnqueueGroupedGemm({.positions = grad.positions,
                             .experts = grad.experts,
                             .in = grad.out_features,
                             .out_features = grad.in,
                             .element = grad.element,
                             .x = grad.grad_out,
                             .offsets = grad.offsets,
                             .w = scratch,
                             .out = grad.grad_x},
                            stream);
}

}  // namespace expertd::cuda
