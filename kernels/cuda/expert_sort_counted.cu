// The stable sort of at most kCountedSlots slots without padding: a slot's position is the number of slots before it,
// and a bin starts after those of lower bins. Whoever wants such a number counts for itself, with some lanes of a warp
// that each look at a part of the slots: that takes less time than agreeing would, and needs one launch.
#include <cuda_runtime.h>

#include "kernels/cuda/expert_sort.cuh"

namespace expertd::cuda {
namespace {

constexpr unsigned kNoBin = 0xffffffffu;

// Slots whose key is below two limits.
struct Below {
  int low = 0, high = 0;
};
__device__ Below CountBelow(const uint4* keys, int fours, int lanes, unsigned low, unsigned high) {
  Below below;
#pragma unroll 4
  for (int i = threadIdx.x % lanes; i < fours; i += lanes) {
    const uint4 four = keys[i];
    below.low += (four.x < low) + (four.y < low) + (four.z < low) + (four.w < low);
    below.high += (four.x < high) + (four.y < high) + (four.z < high) + (four.w < high);
  }
  for (int step = lanes / 2; step > 0; step /= 2) {
    below.low += __shfl_xor_sync(kAllSortLanes, below.low, step);
    below.high += __shfl_xor_sync(kAllSortLanes, below.high, step);
  }
  return below;
}

__global__ void __launch_bounds__(kCountingThreads) CountedKernel(const __grid_constant__ ExpertSortLaunch launch) {
  extern __shared__ uint4 keys[];  // bin, then slot: no two are equal, but for those without a bin
  const int slots = static_cast<int>(launch.slots), bins = static_cast<int>(launch.bins);
  const int fours = (slots + 3) / 4, lanes = CountingLanes(launch.slots);
  const auto key = [&](int slot) { return reinterpret_cast<const unsigned*>(keys)[slot]; };
  LaunchNext();
#pragma unroll 4
  for (int slot = threadIdx.x; slot < fours * 4; slot += kCountingThreads) {
    const int bin = slot < slots ? launch.ids[slot] : -1;
    reinterpret_cast<unsigned*>(keys)[slot] = bin < 0 ? kNoBin : static_cast<unsigned>(bin * kCountedSlots + slot);
  }
  ClearForNext(launch);
  __syncthreads();

  // Two slots, or a bin's start and end.
  const int index = static_cast<int>(blockIdx.x * kCountingThreads + threadIdx.x) / lanes, pairs = (slots + 1) / 2;
  const int slot = index * 2, bin = index - pairs;
  const bool has_slots = index < pairs, has_bin = !has_slots && bin < bins, two = slot + 1 < slots;
  const unsigned low = has_slots ? key(slot) : static_cast<unsigned>(bin * kCountedSlots);
  const unsigned high = !has_slots ? low + kCountedSlots : two ? key(slot + 1) : kNoBin;
  const Below below = CountBelow(keys, fours, lanes, low, high);
  const auto place = [&](int at, unsigned at_key, int position) {
    if (launch.positions != nullptr) launch.positions[at] = at_key == kNoBin ? -1 : position;
    if (launch.sorted_slots != nullptr && at_key != kNoBin) launch.sorted_slots[position] = at;
  };
  const int lane = threadIdx.x % lanes;
  if (has_slots && lane == 0) {
    place(slot, low, below.low);
    if (two) place(slot + 1, high, below.high);
  }
  if (!has_bin) return;
  if (lane == 0) {
    launch.counts[bin] = below.high - below.low;
    if (launch.offsets != nullptr) launch.offsets[bin] = below.low;
  }
  if (bin + 1 < bins) return;
  if (launch.offsets != nullptr && lane == 0) launch.offsets[bins] = below.high;
  if (launch.sorted_slots == nullptr) return;
  for (int at = below.high + lane; at < slots; at += lanes) launch.sorted_slots[at] = -1;  // where no slot is
}

}  // namespace

int LaunchExpertSortCounted(const ExpertSortLaunch& launch, void* stream) {
  const auto shared = static_cast<unsigned>(CeilDiv(launch.slots, 4) * sizeof(uint4));
  CountedKernel<<<CountingBlocks(launch.slots, launch.bins), kCountingThreads, shared,
                  static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace expertd::cuda
