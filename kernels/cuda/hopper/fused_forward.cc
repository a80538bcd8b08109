#include "kernels/cuda/hopper/fused_forward.h"

#include <algorithm>

#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/host.h"

namespace expertd::cuda {

std::int64_t FusedCounters(const FusedWork& work) {
  return FusedCounters(ChooseFusedTile(work), work.positions, work.experts);
}

absl::Status EnqueueFusedForward(FusedForwardLaunch launch, Stream stream) {
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  if (!Aligned16({launch.rows, launch.gate_up, launch.down, launch.hidden, launch.slots})) {
    return absl::InvalidArgumentError("rows, gate_up, down: the fused forward wants them 16-byte aligned");
  }
  launch.tile = ChooseFusedTile({launch.positions, launch.experts, launch.d, launch.f, launch.weights});
  launch.blocks = device->multiprocessors;
  return FromCuda(LaunchFusedForward(launch, stream.handle), "fused_moe_forward");
}

absl::Status EnqueueHopperProduct(const GroupedGemmLaunch& product, Stream stream) {
  const bool gathers = product.gather != nullptr;
  FusedForwardLaunch launch = {.positions = product.positions,
                               .experts = product.experts,
                               .d = product.out_features,
                               .f = product.in,
                               .tile = SomeOrMany(product.positions, product.experts, product.out_features),
                               .blocks = product.blocks,
                               .offsets = product.offsets,
                               .sorted_slots = product.gather,
                               .rows = gathers ? product.x : nullptr,
                               .rows_divisor = product.rows_divisor,
                               .down = product.w,
                               .hidden = gathers ? nullptr : const_cast<void*>(product.x),  // only read
                               .slots = product.out};
  return FromCuda(LaunchFusedForward(launch, stream.handle), "moe_grouped_gemm");
}

}  // namespace expertd::cuda
