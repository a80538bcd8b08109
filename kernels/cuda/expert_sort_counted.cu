// The stable sort of at most kCountedSlots slots without padding: a slot's position is the number of slots before it,
// and a bin starts after those of lower bins. Every thread counts for itself, which takes less time than agreeing
// would.
#include <cuda_runtime.h>

#include "kernels/cuda/expert_sort.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 512;
constexpr unsigned kNoBin = 0xffffffffu;

__global__ void __launch_bounds__(kThreads) CountedKernel(const __grid_constant__ ExpertSortLaunch launch) {
  __shared__ uint4 keys[kCountedSlots / 4];  // bin, then slot: no two are equal, but for those without a bin
  __shared__ int starts[kFewBins + 1];
  const int slot = threadIdx.x, slots = static_cast<int>(launch.slots), bins = static_cast<int>(launch.bins);
  LaunchNext();
  const int bin = BinOf(launch, slot, slots);
  const unsigned key = bin < 0 ? kNoBin : static_cast<unsigned>(bin * kCountedSlots + slot);
  if (slot < kCountedSlots) reinterpret_cast<unsigned*>(keys)[slot] = key;
  ClearForNext(launch);
  __syncthreads();
  const auto below = [&](unsigned limit) {
    int count = 0;
#pragma unroll 4
    for (int i = 0; i < (slots + 3) / 4; ++i) {
      const uint4 four = keys[i];
      count += (four.x < limit) + (four.y < limit) + (four.z < limit) + (four.w < limit);
    }
    return count;
  };
  for (int b = threadIdx.x; b <= bins; b += kThreads) starts[b] = below(b * kCountedSlots);
  const int position = bin < 0 ? -1 : below(key);
  __syncthreads();
  for (int b = threadIdx.x; b <= bins; b += kThreads) {
    if (launch.offsets != nullptr) launch.offsets[b] = starts[b];
    if (b < bins) launch.counts[b] = starts[b + 1] - starts[b];
  }
  if (slot >= slots) return;
  if (launch.positions != nullptr) launch.positions[slot] = position;
  if (launch.sorted_slots == nullptr) return;
  if (position >= 0) launch.sorted_slots[position] = slot;
  if (slot >= starts[bins]) launch.sorted_slots[slot] = -1;  // where a position has no slot
}

}  // namespace

int LaunchExpertSortCounted(const ExpertSortLaunch& launch, void* stream) {
  CountedKernel<<<1, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace expertd::cuda
