// One persistent kernel: two warpgroups multiply; of a third, one warp brings weights and draws tickets, two bring
// token rows, one stores results. See README.md in this folder.
#include <cuda_runtime.h>

#include "kernels/cuda/hopper/consumer.cuh"
#include "kernels/cuda/hopper/epilogue.cuh"
#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/producer.cuh"
#include "kernels/cuda/hopper/work.cuh"
#include "kernels/cuda/launch_early.h"
#include "kernels/cuda/tensor_map.h"

namespace expertd::cuda {

// Together what the block is launched with, or the growing warpgroups would wait for ever. A producer's thread keeps
// twenty row addresses, a consumer's 160 sums.
inline constexpr int kProducerRegisters = 72, kConsumerRegisters = 216;
static_assert(kProducerRegisters * 128 + kConsumerRegisters * kConsumers <=
              65536 / kFusedThreads / 8 * 8 * kFusedThreads);

template <FusedTileId kId, Gate kGate>
__global__ void __launch_bounds__(kFusedThreads, 1)
    FusedForwardKernel(const __grid_constant__ FusedForwardLaunch launch, const __grid_constant__ FusedMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other architectures never launch it, and need not compile it
  constexpr FusedTile kTile = ShapeOf(kId);
  extern __shared__ unsigned char memory[];
  const FusedShared<kId> shared(memory);
  WorkRing<kRingReaders> ring(static_cast<WorkItem*>(shared.ring), shared.RingBarriers());
  if (threadIdx.x == 0) {
    shared.InitBarriers();
    ring.Init();
    FenceBarriers();
  }
  WaitForPrevious();
  LaunchNext();
  Work work;
  work.Build<kFusedThreads>(launch, kTile, shared.starts);  // waits for the block, also for the barriers
  if (threadIdx.x >= kConsumers) {
    ShrinkRegisters<kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if (warp == kStoreWarp) {
      StoreResults<kId>(launch, shared, ring);
    } else if (warp >= kRowsWarp) {
      BringRows<kId>(launch, maps, shared, work, ring);
    } else if (threadIdx.x % 32 == 0) {
      BringWeights<kId>(launch, maps, shared, work, ring);
    }
  } else {
    GrowRegisters<kConsumerRegisters>();
    Consume<kId, kGate>(launch, shared, ring);
  }
#endif
}

inline int MakeFusedMaps(const FusedForwardLaunch& launch, FusedMaps& maps) {
  const auto d = static_cast<std::uint64_t>(launch.d), f = static_cast<std::uint64_t>(launch.f);
  const auto experts = static_cast<std::uint64_t>(launch.experts);
  int error = MakeTensorMap<5>(launch.gate_up, {d, 8, 2, f / 8, experts}, {d * 2, d * f * 2, d * 16, d * f * 4},
                               {kFusedStep, 8, 2, 8, 1}, maps.gate_up);
  if (error == cudaSuccess) {
    error = MakeTensorMap<3>(launch.down, {f, d, experts}, {f * 2, f * d * 2}, {kFusedStep, 128, 1}, maps.down);
  }
  if (error != cudaSuccess) return error;
  const auto positions = static_cast<std::uint64_t>(launch.positions);
  error = MakeTensorMap<3>(launch.hidden, {f, positions, 1}, {f * 2, f * positions * 2}, {kFusedStep, kHiddenBox, 1},
                           maps.hidden);
  if (error != cudaSuccess || ShapeOf(launch.tile).gathers) return error;
  return MakeTensorMap<3>(launch.rows, {d, positions, 1}, {d * 2, d * positions * 2}, {kFusedStep, kHiddenBox, 1},
                          maps.rows);
}

template <FusedTileId kId, Gate kGate>
int LaunchFusedTile(const FusedForwardLaunch& launch, cudaStream_t stream) {
  FusedMaps maps;
  int error = MakeFusedMaps(launch, maps);
  if (error != cudaSuccess) return error;
  const auto kernel = FusedForwardKernel<kId, kGate>;
  const int shared = FusedSharedBytes(ShapeOf(kId), launch.experts);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  return LaunchEarly(kernel, static_cast<unsigned>(launch.blocks), kFusedThreads, shared, stream, launch, maps);
}

template <Gate kGate>
int LaunchFusedGate(const FusedForwardLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  switch (launch.tile) {
    case FusedTileId::kFew:
      return LaunchFusedTile<FusedTileId::kFew, kGate>(launch, stream);
    case FusedTileId::kSome:
      return LaunchFusedTile<FusedTileId::kSome, kGate>(launch, stream);
    case FusedTileId::kMany:
      return LaunchFusedTile<FusedTileId::kMany, kGate>(launch, stream);
    case FusedTileId::kManyInPlace:
      return LaunchFusedTile<FusedTileId::kManyInPlace, kGate>(launch, stream);
  }
  return cudaErrorInvalidValue;
}

}  // namespace expertd::cuda
