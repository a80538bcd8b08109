// What the sorting kernels share: bins, ranks within a warp, prefixes over a block of kSortThreads.
#pragma once

#include <cstdint>

#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {

inline constexpr int kSortWarps = kSortThreads / 32;
inline constexpr unsigned kAllSortLanes = 0xffffffffu;

__device__ inline int BinOf(const ExpertSortLaunch& launch, std::int64_t slot, std::int64_t end) {
  const std::int32_t id = slot < end ? launch.ids[slot] : -1;
  return id < 0 ? -1 : launch.ids_per_bin == 1 ? id : id / static_cast<std::int32_t>(launch.ids_per_bin);
}

// By all threads of a kernel.
__device__ inline void ClearForNext(const ExpertSortLaunch& launch) {
  for (std::int64_t i = blockIdx.x * blockDim.x + threadIdx.x; i < launch.cleared_count; i += gridDim.x * blockDim.x) {
    launch.cleared[i] = 0;
  }
}

// The lanes whose bin is this lane's, by one vote for each bit: match_any takes longer the more bins differ. Five bits
// at a time, so that votes overlap.
__device__ inline unsigned LanesOf(int bin, int bins) {
  unsigned same = kAllSortLanes;
#pragma unroll 1
  for (int first = 0; bins >> first != 0; first += 5) {  // bin + 1 <= bins
#pragma unroll
    for (int i = 0; i < 5; ++i) {
      const bool set = (bin + 1 >> (first + i) & 1) != 0;
      const unsigned votes = __ballot_sync(kAllSortLanes, set);
      same &= set ? votes : ~votes;
    }
  }
  return same;
}
__device__ inline bool IsLowest(unsigned lanes) { return __ffs(lanes) - 1 == threadIdx.x % 32; }
__device__ inline int RankIn(unsigned lanes) { return __popc(lanes & ((1u << threadIdx.x % 32) - 1)); }

struct Sums {
  int before, total;
};

// Exclusive prefix of each thread's value over the block, and the sum of all.
__device__ inline Sums BlockScan(int value) {
  __shared__ int warp_sum[kSortWarps];
  const int lane = threadIdx.x % 32;
  int inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(kAllSortLanes, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  __syncthreads();  // an earlier call's warp_sum has been read
  if (lane == 31) warp_sum[threadIdx.x / 32] = inclusive;
  __syncthreads();
  const int sum = warp_sum[lane], warps_before = static_cast<int>(threadIdx.x) / 32;
  const int before = __reduce_add_sync(kAllSortLanes, lane < warps_before ? sum : 0);
  return {before + inclusive - value, static_cast<int>(__reduce_add_sync(kAllSortLanes, sum))};
}

}  // namespace expertd::cuda
