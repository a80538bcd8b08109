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

// Waits until the oldest of `staged` stages on their way, at most kMost, is there.
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
  constexpr int kStages = StreamShape{kCode, kTokens}.stages();
  extern __shared__ unsigned char memory[];
  StreamBlock<kCode, kTokens> block(launch, memory);
  block.Prepare();
  StreamFront<kCode, kTokens> front(block);
  const auto next = [](int stage) { return stage + 1 == kStages ? 0 : stage + 1; };
  int staged = 0, front_stage = 0, stage = 0;  // stages on their way; the next to fill, the next to use
  bool up_is_there = false;
  int without_rows = 0;  // stages on their way that wait for the first product
  const auto refill = [&](bool wait) {
    while (staged < kStages && front.Ready(wait)) {
      front.CopyWeights(block.Stage(front_stage));
      if (front.unit().phase() == Phase::kUp || up_is_there) {
        block.CopyRows(front.unit(), front.step(), block.Stage(front_stage));
      } else {
        ++without_rows;
      }
      CommitCopies();
      front.Advance();
      front_stage = next(front_stage);
      ++staged;
    }
  };
  const auto bring_late_rows = [&](int unit_number) {
    int step = 0, to = stage;
    StreamUnit unit = block.Unit(unit_number);
    for (; without_rows > 0; --without_rows, to = next(to)) {
      if (2 * step >= block.Lines(unit.phase())) unit = block.Unit(++unit_number), step = 0;
      block.CopyRows(unit, step++, block.Stage(to));
    }
    CommitCopies();
    WaitCopies<0>();
  };

  StreamSums<kCode, kTokens, Known> sums;
  for (int unit_number = 0;; ++unit_number) {
    if (staged == 0) refill(/*wait=*/true);
    if (staged == 0) return;
    const StreamUnit unit = block.Unit(unit_number);
    if (unit.phase() == Phase::kDown && !up_is_there) {
      block.AwaitUp();
      up_is_there = true;
      bring_late_rows(unit_number);
    }
    const int lines = block.Lines(unit.phase());
#pragma unroll 1
    for (int line = 0; line < lines; line += 2) {
      WaitOldest<kStages>(staged);
      __syncwarp();
      sums.Add(block.Stage(stage), line + 1 < lines);
      __syncwarp();
      stage = next(stage);
      --staged;
      refill(/*wait=*/false);
    }
    sums.Store(launch, unit);
    if (unit.phase() == Phase::kUp) block.TellUp();
  }
#endif
}

}  // namespace expertd::cuda
