#include "kernels/cuda/grouped_gemm.h"

#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {

absl::Status EnqueueGroupedGemm(GroupedGemmLaunch launch, Stream stream) {
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  if (launch.weights == WeightCode::kElement) {
    launch.weights = launch.element == Element::kBF16 ? WeightCode::kBF16 : WeightCode::kF32;
  }
  if (UsesTensorCores(launch.element, launch.weights, launch.in)) {
    if (!Aligned16({launch.x, launch.w, launch.out})) {
      return absl::InvalidArgumentError("x, w, out: bf16 rows must be 16-byte aligned");
    }
    if (!launch.wide_out &&
        UsesHopperProduct(*device, launch.element, launch.weights, launch.in, launch.out_features, launch.experts)) {
      launch.blocks = device->multiprocessors;
      return EnqueueHopperProduct(launch, stream);
    }
    launch.tile = ChooseGemmTile(launch.positions, launch.experts, *device, launch.weights);
    launch.blocks = GemmBlocks(launch.tile, launch.positions, launch.experts, launch.out_features, *device);
    return FromCuda(LaunchGroupedGemm(launch, stream.handle), "moe_grouped_gemm");
  }
  launch.blocks = PlainGemmBlocks(*device);
  return FromCuda(LaunchGroupedGemmPlain(launch, stream.handle), "moe_grouped_gemm");
}

absl::Status MoeGroupedGemm(const MoeGroupedGemmArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.positions == 0) return status;
  return EnqueueGroupedGemm({.positions = args.positions,
                             .experts = args.e,
                             .in = args.in,
                             .out_features = args.out_features,
                             .element = ElementOf(args.dtype),
                             .x = args.x,
                             .gather = args.gather,
                             .offsets = args.offsets,
                             .w = args.w,
                             .out = args.out},
                            stream);
}

}  // namespace expertd::cuda
