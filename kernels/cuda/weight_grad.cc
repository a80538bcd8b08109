#include "kernels/cuda/weight_grad.h"

#include <algorithm>

#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ragged_wgmma.h"
#include "kernels/cuda/ragged_wgmma_config.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {

absl::Status MoeWeightGrad(const MoeWeightGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  WeightGradLaunch launch = {.experts = args.e,
                             .in = args.in,
                             .out_features = args.out_features,
                             .element = ElementOf(args.dtype),
                             .grad_element = ElementOf(args.w_dtype),
                             .grad_out = args.grad_out,
                             .x = args.x,
                             .offsets = args.offsets,
                             .grad_w = args.grad_w};
  if (!GradUsesTensorCores(launch.element, args.in, args.out_features)) {
    launch.blocks = device->multiprocessors * 4;
    return FromCuda(LaunchWeightGradPlain(launch, stream.handle), "moe_weight_grad");
  }
  if (!Aligned16({args.grad_out, args.x, args.grad_w})) {
    return absl::InvalidArgumentError("grad_out, x, grad_w: bf16 rows must be 16-byte aligned");
  }
  if (UsesRaggedWgmma(*device, launch.element, args.in, args.out_features) && args.positions > 0) {
    return FromCuda(LaunchRaggedWgmma({.sum = SumOver::kPositions,
                                       .positions = args.positions,
                                       .experts = args.e,
                                       .in = args.in,
                                       .out_features = args.out_features,
                                       .result_element = launch.grad_element,
                                       .blocks = device->multiprocessors,
                                       .grad_out = args.grad_out,
                                       .right = args.x,
                                       .offsets = args.offsets,
                                       .result = args.grad_w},
                                      stream.handle),
                    "moe_weight_grad");
  }
  const std::int64_t tiles = GradTiles(args.e, args.out_features, args.in);
  launch.blocks = static_cast<int>(std::min<std::int64_t>(tiles, device->multiprocessors));
  return FromCuda(LaunchWeightGrad(launch, stream.handle), "moe_weight_grad");
}

}  // namespace expertd::cuda
