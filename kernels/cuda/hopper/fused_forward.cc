#include "kernels/cuda/hopper/fused_forward.h"

#include <algorithm>

#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/host.h"

namespace expertd::cuda {

std::int64_t FusedCounters(std::int64_t positions, std::int64_t experts, std::int64_t f) {
  return FusedCounters(ChooseFusedTile(positions, experts, f), positions, experts);
}

absl::Status EnqueueFusedForward(FusedForwardLaunch launch, Stream stream) {
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  if (!Aligned16({launch.rows, launch.gate_up, launch.down, launch.hidden, launch.slots})) {
    return absl::InvalidArgumentError("rows, gate_up, down: the fused forward wants them 16-byte aligned");
  }
  launch.tile = ChooseFusedTile(launch.positions, launch.experts, launch.f);
  launch.blocks = device->multiprocessors;
  return FromCuda(LaunchFusedForward(launch, stream.handle), "fused_moe_forward");
}

}  // namespace expertd::cuda
