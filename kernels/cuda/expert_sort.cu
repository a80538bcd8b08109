// Ranks without atomics, so that the order is stable: each warp owns a run of neighbouring slots and a row of counters
// in shared memory. A first walk counts; a prefix over warps, blocks and bins turns counts into positions; a second
// walk hands the positions out, 32 slots at a time: lanes with the same bin find each other (match_any), and the lowest
// of them moves the counter.
//
// Two kernels at most. The blocks of the second do not wait for one another: each adds up the counts of the first
// itself, which for 128 blocks x 256 bins is 128 KiB from L2.
#include <cuda_runtime.h>

#include "kernels/cuda/expert_sort.cuh"
#include "kernels/cuda/launch_early.h"

namespace expertd::cuda {
namespace {

// Calls visit(slot, bin) with all lanes of the warp, 32 slots at a time, in order of the slots of `warp`. Not unrolled:
// a kernel this short spends much of its time on fetching its own instructions.
template <typename Visit>
__device__ void WalkSlots(const ExpertSortLaunch& launch, int warp, const Visit& visit) {
  const std::int64_t begin = (std::int64_t{blockIdx.x} * launch.config.warps + warp) * launch.config.slots_per_warp;
  const std::int64_t end = min(begin + launch.config.slots_per_warp, launch.slots);
#pragma unroll 1
  for (std::int64_t slot = begin + threadIdx.x % 32; slot - threadIdx.x % 32 < end; slot += 32) {
    visit(slot, BinOf(launch, slot, end));
  }
}

// Counts of this block's slots: block_counts[block, bin]. Integer atomics, whose order does not show.
__global__ void __launch_bounds__(kSortThreads) CountKernel(const __grid_constant__ ExpertSortLaunch launch) {
  extern __shared__ std::int32_t count[];  // [bins]
  LaunchNext();
  for (int bin = threadIdx.x; bin < launch.bins; bin += kSortThreads) count[bin] = 0;
  __syncthreads();
  const std::int64_t per_block = launch.config.warps * launch.config.slots_per_warp;
  const std::int64_t begin = blockIdx.x * per_block, end = min(begin + per_block, launch.slots);
  for (std::int64_t slot = begin + threadIdx.x; slot < end; slot += kSortThreads) {
    const int bin = BinOf(launch, slot, end);
    if (bin >= 0) atomicAdd(&count[bin], 1);
  }
  __syncthreads();
  std::int32_t* const to = launch.block_counts + blockIdx.x * launch.bins;
  for (int bin = threadIdx.x; bin < launch.bins; bin += kSortThreads) to[bin] = count[bin];
}

// Arrays of the placing kernel in shared memory.
struct Shared {
  std::int32_t* counters;  // [warps, bins]  first counts, then the next rank that a warp hands out
  std::int32_t* first;     // [bins]         position of rank 0 of this block's slots
  std::int32_t* offset;    // [bins + 1]     start of each bin's padded run

  __device__ Shared(std::int32_t* base, const ExpertSortLaunch& launch)
      : counters(base), first(counters + launch.config.warps * launch.bins), offset(first + launch.bins) {}
};

// Turns a bin's counters into prefixes over the warps, eight at a time. Returns the block's slots of that bin.
__device__ int ScanWarps(const ExpertSortLaunch& launch, const Shared& shared, std::int64_t bin) {
  constexpr int kTogether = 8;
  int sum = 0;
#pragma unroll 1
  for (int first = 0; first < launch.config.warps; first += kTogether) {
    const int bins = static_cast<int>(launch.bins);
    std::int32_t* const counter = shared.counters + first * bins + bin;
    int count[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) count[i] = first + i < launch.config.warps ? counter[i * bins] : 0;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (first + i < launch.config.warps) counter[i * bins] = sum;
      sum += count[i];
    }
  }
  return sum;
}

// A bin's slots in the blocks before this one, and in all.
__device__ Sums ScanBlocks(const ExpertSortLaunch& launch, std::int64_t bin, int own) {
  if (launch.block_counts == nullptr) return {0, own};
  constexpr int kTogether = 32;  // loads on their way
  Sums sums = {0, 0};
#pragma unroll 1
  for (int first = 0; first < launch.config.blocks; first += kTogether) {
    int count[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      count[i] = first + i < launch.config.blocks ? launch.block_counts[(first + i) * launch.bins + bin] : 0;
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      sums.before += first + i < blockIdx.x ? count[i] : 0;
      sums.total += count[i];
    }
  }
  return sums;
}

// Fills shared.first and shared.offset; block 0 writes counts, offsets and overflow.
__device__ void ScanBins(const ExpertSortLaunch& launch, const Shared& shared) {
  const int per_thread = (launch.bins + kSortThreads - 1) / kSortThreads;
  const std::int64_t begin = std::int64_t{threadIdx.x} * per_thread, end = min(begin + per_thread, launch.bins);
  int padded = 0, over = 0;
  for (std::int64_t bin = begin; bin < end; ++bin) {
    const Sums slots = ScanBlocks(launch, bin, ScanWarps(launch, shared, bin));
    shared.offset[bin] = padded;
    shared.first[bin] = slots.before;
    padded += (slots.total + launch.block - 1) / launch.block * launch.block;
    over += launch.capacity >= 0 && slots.total > launch.capacity ? slots.total - launch.capacity : 0;
    if (blockIdx.x == 0) launch.counts[bin] = slots.total;
  }
  const Sums run = BlockScan(padded);
  for (std::int64_t bin = begin; bin < end; ++bin) {
    shared.offset[bin] += run.before;
    shared.first[bin] += launch.capacity >= 0 ? static_cast<int>(bin * launch.capacity) : shared.offset[bin];
    if (blockIdx.x == 0 && launch.offsets != nullptr) launch.offsets[bin] = shared.offset[bin];
  }
  if (launch.overflow != nullptr) over = BlockScan(over).total;
  if (threadIdx.x == 0) {
    shared.offset[launch.bins] = run.total;
    if (blockIdx.x == 0 && launch.offsets != nullptr) launch.offsets[launch.bins] = run.total;
    if (blockIdx.x == 0 && launch.overflow != nullptr) *launch.overflow = over;
  }
}

// The bin whose run holds `position`; position < offset[bins].
__device__ int BinAt(const Shared& shared, int bins, std::int64_t position) {
  int low = 0, high = bins;  // offset[low] <= position < offset[high]
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (shared.offset[middle] <= position ? low : high) = middle;
  }
  return low;
}

// What no slot writes: padding within the runs, positions past the last run, and the expert of each block.
__device__ void FillPadding(const ExpertSortLaunch& launch, const Shared& shared) {
  const std::int64_t total = shared.offset[launch.bins], threads = std::int64_t{gridDim.x} * kSortThreads;
  const std::int64_t thread = std::int64_t{blockIdx.x} * kSortThreads + threadIdx.x;
  for (std::int64_t position = total + thread; position < launch.padded; position += threads) {
    launch.sorted_slots[position] = -1;
  }
  if (launch.block_experts != nullptr) {
    for (std::int64_t block = thread; block < launch.padded / launch.block; block += threads) {
      const std::int64_t position = block * launch.block;
      launch.block_experts[block] = position < total ? BinAt(shared, launch.bins, position) : -1;
    }
  }
}

// Padding of one bin's run: the last block of the bin's slots knows where they end.
__device__ void FillRuns(const ExpertSortLaunch& launch, const Shared& shared) {
  if (blockIdx.x != gridDim.x - 1) return;
  for (std::int64_t bin = threadIdx.x / 32; bin < launch.bins; bin += kSortWarps) {
    // After all ranks of the last block are handed out, its last warp's counter is the block's count of the bin.
    const int end = shared.first[bin] + shared.counters[(launch.config.warps - 1) * launch.bins + bin];
    for (int position = end + threadIdx.x % 32; position < shared.offset[bin + 1]; position += 32) {
      launch.sorted_slots[position] = -1;
    }
  }
}

__global__ void __launch_bounds__(kSortThreads, 1) PlaceKernel(const __grid_constant__ ExpertSortLaunch launch) {
  extern __shared__ std::int32_t memory[];
  const Shared shared(memory, launch);
  const int warp = threadIdx.x / 32;
  std::int32_t* const own = shared.counters + warp * launch.bins;
  LaunchNext();
  ClearForNext(launch);
  for (std::int64_t i = threadIdx.x; i < launch.config.warps * launch.bins; i += kSortThreads) shared.counters[i] = 0;
  __syncthreads();
  if (warp < launch.config.warps) {
    WalkSlots(launch, warp, [&](std::int64_t, int bin) {
      if (bin >= 0) atomicAdd(&own[bin], 1);  // integers: the order does not show
    });
  }
  WaitForPrevious();  // for the counts
  __syncthreads();
  ScanBins(launch, shared);
  __syncthreads();
  if (warp < launch.config.warps) {
    WalkSlots(launch, warp, [&](std::int64_t slot, int bin) {
      const unsigned same = LanesOf(bin, static_cast<int>(launch.bins));
      // In 64 bits: over a large capacity, a position that will be refused need not fit in 32.
      std::int64_t position = bin < 0 ? -1 : std::int64_t{shared.first[bin]} + own[bin] + RankIn(same);
      __syncwarp();
      if (bin >= 0 && IsLowest(same)) own[bin] += __popc(same);
      __syncwarp();
      if (launch.capacity >= 0 && position >= (bin + 1) * launch.capacity) position = -1;
      if (slot >= launch.slots) return;
      if (launch.positions != nullptr) launch.positions[slot] = static_cast<int>(position);
      if (launch.sorted_slots != nullptr && position >= 0) launch.sorted_slots[position] = static_cast<int>(slot);
    });
  }
  if (launch.sorted_slots == nullptr) return;
  FillPadding(launch, shared);
  if (launch.block == 1) return;
  __syncthreads();
  FillRuns(launch, shared);
}

}  // namespace

int LaunchExpertSort(const ExpertSortLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  if (launch.slots <= kCountedSlots && launch.bins <= kFewBins && launch.block == 1 && launch.capacity < 0 &&
      launch.block_experts == nullptr && launch.ids_per_bin == 1) {
    return LaunchExpertSortCounted(launch, stream_handle);
  }
  if (launch.config.few) return LaunchExpertSortFew(launch, stream_handle);
  if (launch.block_counts != nullptr) {
    CountKernel<<<launch.config.blocks, kSortThreads, launch.bins * sizeof(std::int32_t), stream>>>(launch);
  }
  const int error =
      cudaFuncSetAttribute(PlaceKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, launch.config.shared_bytes);
  if (error != cudaSuccess) return error;
  if (launch.block_counts != nullptr && OnHopper()) {
    return LaunchEarly(PlaceKernel, launch.config.blocks, kSortThreads, launch.config.shared_bytes, stream, launch);
  }
  PlaceKernel<<<launch.config.blocks, kSortThreads, launch.config.shared_bytes, stream>>>(launch);
  return cudaGetLastError();
}

}  // namespace expertd::cuda
