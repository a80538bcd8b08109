// The kernel for few rows: every warp streams weights of its own through a ring of its own, waits for nothing but
// memory, and multiplies by mma.sync, which gives wgmma's bits.
//
// Blocks draw shares of all units from a counter: first the shares of the first product, one a block, then those of the
// second. Whoever waits for the first product has drawn a share of the second, so all of the first are drawn, by blocks
// that run: blocks need not be resident together. Weights of the second product are on their way while it waits.
#pragma once

#include "kernels/cuda/hopper/stream_sums.cuh"
#include "kernels/cuda/hopper/stream_units.cuh"

namespace expertd::cuda {

// Waits until the oldest of `staged` groups of copies on their way, at most kMost, is there.
template <int kMost>
__device__ void WaitOldest(int staged) {
  if constexpr (kMost > 1) {
    if (staged < kMost) return WaitOldest<kMost - 1>(staged);
  }
  WaitCopies<kMost - 1>();
}

template <WeightCode kCode, int kTokens, class Known>
__global__ void __launch_bounds__(StreamShape{kCode, kTokens}.warps() * 32, 1)
    StreamKernel(const __grid_constant__ FusedForwardLaunch launch) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  constexpr StreamShape kShape = {kCode, kTokens};
  constexpr int kStages = kShape.stages(), kStaged = kStages - 1;  // one is free: its operands were just read
  extern __shared__ unsigned char memory[];
  StreamBlock<kCode, kTokens> block(launch, memory);
  block.Prepare();
  StreamFront<kCode, kTokens> front(block);
  const std::uint32_t ring = block.Stage(0), end = ring + kStages * kShape.stage_bytes();
  const auto next = [&](std::uint32_t stage) {
    return stage + kShape.stage_bytes() == end ? ring : stage + kShape.stage_bytes();
  };
  int staged = 0;                                  // steps on their way
  std::uint32_t front_stage = ring, stage = ring;  // the next to fill, the next to use
  bool up_is_there = false;
  int without_rows = 0;  // steps on their way that wait for the first product
  const auto bring = [&](bool wait) {
    if (!front.Ready(wait)) return false;
    const bool rows = front.phase() == Phase::kUp || up_is_there;
    without_rows += !rows;
    front.Copy(front_stage, rows);
    front_stage = next(front_stage);
    ++staged;
    return true;
  };
  const auto bring_late_rows = [&](int unit_number) {
    std::uint32_t to = stage;
    while (without_rows > 0) {
      const StreamUnit unit = block.Unit(unit_number++);
      StreamRows<kTokens> rows;
      rows.Find(block, unit);
      for (int lines = block.Lines(Phase::kDown); lines > 0 && without_rows > 0; lines -= 2, --without_rows) {
        rows.Copy(to + kShape.rows_at(), true, lines > 1);
        to = next(to);
      }
    }
    CommitCopies();
    WaitCopies<0>();
  };

  const auto fill = [&] {
    while (staged < kStaged && bring(/*wait=*/staged == 0)) {
    }
  };
  fill();
  WaitForPrevious();  // at last: the next kernel reads its maps, and may do so while this one runs
  LaunchNext();

  StreamSums<kCode, kTokens, Known> sums;
  for (int unit_number = 0;; ++unit_number) {
    fill();
    if (staged == 0) return;
    const StreamUnit unit = block.Unit(unit_number);
    if (unit.phase() == Phase::kDown && !up_is_there) {
      block.AwaitUp();
      up_is_there = true;
      bring_late_rows(unit_number);
    }
#pragma unroll 1
    for (int lines = block.Lines(unit.phase()); lines > 0; lines -= 2) {
      WaitOldest<kStaged>(staged);
      __syncwarp();  // now the stage before this one is free, too
      sums.Load(stage);
      bring(/*wait=*/false);
      sums.Add(lines > 1);
      stage = next(stage);
      --staged;
    }
    sums.Store(launch, unit);
    if (unit.phase() == Phase::kUp) block.TellUp();
  }
#endif
}

}  // namespace expertd::cuda
