// One persistent kernel: two warpgroups multiply; of a third, one warp brings weights and draws tickets, two bring
// token rows, one tells when results are there. See README.md in this folder.
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

// A producer's thread keeps up to twenty row addresses, a consumer's 192 sums; less where there are four warpgroups.
inline constexpr int kProducerRegisters = 72;
template <FusedTileId kId>
inline constexpr int kConsumerRegisters = ShapeOf(kId).groups > 2 ? 96 : 216;
// Together what the block is launched with, or the growing warpgroups would wait for ever.
template <FusedTileId kId>
inline constexpr bool kRegistersFit = kProducerRegisters * 128 + kConsumerRegisters<kId>* kWeightsWarp<kId> * 32 <=
                                      65536 / kFusedThreads<kId> / 8 * 8 * kFusedThreads<kId>;

// Known: Gates<...>.
template <FusedTileId kId, class Known>
__global__ void __launch_bounds__(kFusedThreads<kId>, 1)
    FusedForwardKernel(const __grid_constant__ FusedForwardLaunch launch, const __grid_constant__ FusedMaps maps) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)  // other architectures never launch it, and need not compile it
  static_assert(kRegistersFit<kId>);
  constexpr FusedTile kTile = ShapeOf(kId);
  extern __shared__ unsigned char memory[];
  const FusedShared<kId> shared(memory);
  WorkRing<kRingReaders<kId>> ring(static_cast<WorkItem*>(shared.ring), shared.RingBarriers());
  if (threadIdx.x == 0) {
    shared.InitBarriers();
    ring.Init();
    FenceBarriers();
  }
  const std::int32_t* offsets = launch.offsets;
  if (launch.finds_offsets()) {
    FindOffsets<kFusedThreads<kId>>(launch, shared.first_offsets);
    offsets = shared.first_offsets;
  } else {
    WaitForPrevious();
    LaunchNext();
  }
  Work work;
  work.Build<kFusedThreads<kId>>(launch, kTile, offsets, shared.starts);  // waits for the block, also for the barriers
  if (threadIdx.x >= kWeightsWarp<kId> * 32) {
    ShrinkRegisters<kProducerRegisters>();
    const int warp = threadIdx.x / 32;
    if (warp == kNewsWarp<kId>) {
      TellOfResults<kId>(launch, shared, ring);
    } else if (warp >= kRowsWarp<kId>) {
      BringRows<kId>(launch, maps, shared, work, ring);
    } else if (threadIdx.x % 32 == 0) {
      BringWeights<kId>(launch, maps, shared, work, ring);
    }
  } else {
    GrowRegisters<kConsumerRegisters<kId>>();
    Consume<kId, Known>(launch, shared, ring);
  }
#endif
}

inline int MakeWeightMaps(const FusedForwardLaunch& launch, FusedMaps& maps) {
  const auto d = static_cast<std::uint64_t>(launch.d), f = static_cast<std::uint64_t>(launch.f);
  const auto experts = static_cast<std::uint64_t>(launch.experts);
  const auto block_weights = static_cast<std::uint32_t>(ShapeOf(launch.tile).block_weights());
  const int error = launch.one_product() ? cudaSuccess
                                         : MakeTensorMap<5>(launch.gate_up, {d, 8, 2, f / 8, experts},
                                                            {d * 2, d * f * 2, d * 16, d * f * 4},
                                                            {kFusedLineK, 8, 2, block_weights / 16, 1}, maps.gate_up);
  if (error != cudaSuccess) return error;
  return MakeTensorMap<3>(launch.down, {f, d, experts}, {f * 2, f * d * 2}, {kFusedLineK, block_weights, 1}, maps.down);
}

inline int MakeRowMap(const FusedForwardLaunch& launch, FusedMaps& maps) {
  if (launch.hidden == nullptr) return cudaSuccess;
  // Two codes of e4m3 count as an element.
  const auto f = static_cast<std::uint64_t>(ShapeOf(launch.tile).row_lines(launch.f) * kFusedLineK);
  const auto positions = static_cast<std::uint64_t>(launch.positions);
  return MakeTensorMap<3>(launch.hidden, {f, positions, 1}, {f * 2, f * positions * 2}, {kFusedLineK, kHiddenBox, 1},
                          maps.hidden);
}

template <FusedTileId kId, class Known>
int LaunchFusedTile(const FusedForwardLaunch& launch, cudaStream_t stream) {
  FusedMaps maps;
  int error = launch.packed ? cudaSuccess : MakeWeightMaps(launch, maps);
  if (error == cudaSuccess) error = MakeRowMap(launch, maps);
  if (error != cudaSuccess) return error;
  const auto kernel = FusedForwardKernel<kId, Known>;
  const int shared = FusedSharedBytes(ShapeOf(kId), launch.experts);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
  if (error != cudaSuccess) return error;
  return LaunchEarly(kernel, static_cast<unsigned>(launch.blocks), kFusedThreads<kId>, shared, stream, launch, maps);
}

// With the tile that the launch names, if it is one of kIds.
template <class Known, FusedTileId... kIds>
int LaunchOneOf(const FusedForwardLaunch& launch, void* stream) {
  int error = cudaErrorInvalidValue;
  (void)((launch.tile == kIds &&
          (error = LaunchFusedTile<kIds, Known>(launch, static_cast<cudaStream_t>(stream)), true)) ||
         ...);
  return error;
}

template <Gate kGate>
int LaunchFusedGate(const FusedForwardLaunch& launch, void* stream) {
  using enum FusedTileId;
  return LaunchOneOf<Gates<kGate>, kSome, kMany>(launch, stream);
}

// Which activation is decided in the kernel: compiling each tile once for each would take long, and costs nothing where
// reading weights is the limit.
using EveryGate = Gates<Gate::kSilu, Gate::kGelu, Gate::kGeluTanh, Gate::kRelu, Gate::kRelu2, Gate::kSwigluOai>;

}  // namespace expertd::cuda
