// The stable sort of at most kFewSlots slots: a thread a slot. Each block ranks all slots for itself, so that blocks
// need not meet, and puts together its own kFewRange positions of the sorted array in shared memory, padding included.
//
// A slot's rank is what comes before it in its warp (votes), in the earlier warps of its quarter of the block, and in
// the earlier quarters. Counters have 16 bits and are added up two at a time: no bin has more than 1024 slots.
#include <cuda_runtime.h>

#include "kernels/cuda/expert_sort.cuh"

namespace expertd::cuda {
namespace {

constexpr int kQuarters = 4, kWarpsOfQuarter = kSortWarps / kQuarters;
constexpr int kRange = static_cast<int>(kFewRange);

// Arrays in shared memory.
struct Shared {
  int words;               // of two counters each, for all bins
  std::uint32_t* warp;     // [kSortWarps, words]
  std::uint32_t* quarter;  // [kQuarters, words]
  std::int32_t* offset;    // [bins + 1]  start of each bin's padded run
  std::int32_t* placed;    // [kRange]    this block's positions of the sorted array
  std::int32_t* experts;   // [kRange]    this block's part of block_experts

  __device__ Shared(std::uint32_t* base, int bins)
      : words((bins + 1) / 2),
        warp(base),
        quarter(warp + kSortWarps * words),
        offset(reinterpret_cast<std::int32_t*>(quarter + kQuarters * words)),
        placed(offset + bins + 1),
        experts(placed + kRange) {}

  __device__ std::uint16_t& Count(std::uint32_t* counters, int index, int bin) const {
    return reinterpret_cast<std::uint16_t*>(counters + index * words)[bin];
  }
};

// Turns the counts of warps into prefixes within their quarter, and leaves the quarters' sums.
__device__ void ScanWarps(const Shared& shared) {
  for (int i = threadIdx.x; i < kQuarters * shared.words; i += kSortThreads) {
    const int quarter = i / shared.words, word = i - quarter * shared.words;
    std::uint32_t* const counter = shared.warp + quarter * kWarpsOfQuarter * shared.words + word;
    std::uint32_t count[kWarpsOfQuarter], sum = 0;
#pragma unroll
    for (int j = 0; j < kWarpsOfQuarter; ++j) count[j] = counter[j * shared.words];
#pragma unroll
    for (int j = 0; j < kWarpsOfQuarter; ++j) {
      counter[j * shared.words] = sum;
      sum += count[j];
    }
    shared.quarter[i] = sum;
  }
}

// A bin a thread: prefixes over the quarters, and where each bin's run starts. Block 0 writes counts, offsets,
// overflow.
__device__ void ScanBins(const ExpertSortLaunch& launch, const Shared& shared, int first_expert) {
  const int bins = static_cast<int>(launch.bins), bin = threadIdx.x;
  const bool exists = bin < bins, writes = blockIdx.x == 0;
  int total = 0;
  for (int i = 0; i < kQuarters && exists; ++i) {
    std::uint16_t& count = shared.Count(shared.quarter, i, bin);
    const int own = count;
    count = static_cast<std::uint16_t>(total);
    total += own;
  }
  const int block = static_cast<int>(launch.block), blocks = (total + block - 1) / block;
  const Sums run = BlockScan(blocks);
  if (exists) {
    shared.offset[bin] = run.before * block;
    if (writes) launch.counts[bin] = total;
    if (writes && launch.offsets != nullptr) launch.offsets[bin] = run.before * block;
    if (launch.block_experts != nullptr) {
      const int from = max(run.before - first_expert, 0), to = min(run.before + blocks - first_expert, kRange);
      for (int i = from; i < to; ++i) shared.experts[i] = bin;
    }
  }
  if (writes && bin == 0 && launch.offsets != nullptr) launch.offsets[bins] = run.total * block;
  if (launch.overflow != nullptr) {
    const std::int64_t over = total - launch.capacity;
    const int sum = BlockScan(exists && over > 0 ? static_cast<int>(over) : 0).total;
    if (writes && bin == 0) *launch.overflow = sum;
  }
}

__global__ void __launch_bounds__(kSortThreads, 1) FewKernel(const __grid_constant__ ExpertSortLaunch launch) {
  extern __shared__ std::uint32_t memory[];
  const Shared shared(memory, static_cast<int>(launch.bins));
  const int slot = threadIdx.x, warp = threadIdx.x / 32;
  const std::int64_t first = std::int64_t{blockIdx.x} * kRange, count = min(launch.padded - first, kFewRange);
  const std::int64_t expert_blocks = launch.block_experts == nullptr ? 0 : launch.padded / launch.block - first;

  LaunchNext();
  const int bin = BinOf(launch, slot, launch.slots);
  ClearForNext(launch);
  for (int i = threadIdx.x; i < kSortWarps * shared.words; i += kSortThreads) shared.warp[i] = 0;
  for (int i = threadIdx.x; i < kRange; i += kSortThreads) shared.placed[i] = shared.experts[i] = -1;
  __syncthreads();
  const unsigned same = LanesOf(bin, static_cast<int>(launch.bins));
  const int rank = RankIn(same);
  if (bin >= 0 && rank == 0) shared.Count(shared.warp, warp, bin) = static_cast<std::uint16_t>(__popc(same));
  __syncthreads();
  ScanWarps(shared);
  __syncthreads();
  ScanBins(launch, shared, static_cast<int>(first));
  __syncthreads();

  std::int64_t position = -1;
  if (bin >= 0) {
    const int in_bin =
        rank + shared.Count(shared.warp, warp, bin) + shared.Count(shared.quarter, warp / kWarpsOfQuarter, bin);
    position = shared.offset[bin] + in_bin;
    if (launch.capacity >= 0) position = in_bin < launch.capacity ? bin * launch.capacity + in_bin : -1;
  }
  if (slot < launch.slots && blockIdx.x == 0 && launch.positions != nullptr) {
    launch.positions[slot] = static_cast<int>(position);
  }
  if (launch.sorted_slots == nullptr) return;
  if (position >= first && position < first + count) shared.placed[position - first] = slot;
  __syncthreads();
  for (int i = threadIdx.x; i < count; i += kSortThreads) launch.sorted_slots[first + i] = shared.placed[i];
  for (int i = threadIdx.x; i < min(expert_blocks, kFewRange); i += kSortThreads) {
    launch.block_experts[first + i] = shared.experts[i];
  }
}

}  // namespace

int LaunchExpertSortFew(const ExpertSortLaunch& launch, void* stream) {
  const int shared_bytes = FewSharedBytes(launch.bins);
  const int error = cudaFuncSetAttribute(FewKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes);
  if (error != cudaSuccess) return error;
  const std::int64_t blocks =
      launch.sorted_slots == nullptr ? 1 : max(std::int64_t{1}, CeilDiv(launch.padded, kFewRange));
  FewKernel<<<static_cast<unsigned>(blocks), kSortThreads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace expertd::cuda
