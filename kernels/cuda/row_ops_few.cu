// Scatter and pack of few slots in one kernel. Nobody waits for a sort: whoever needs a slot's position counts the
// slots before it, 32 votes at a time, which costs less than a second launch. The first blocks spread rows, one counts
// bins, the others clear what no slot names.
#include <cuda_runtime.h>

#include "kernels/cuda/expert_sort.cuh"
#include "kernels/cuda/row_ops.cuh"
#include "kernels/cuda/row_ops_config.h"

namespace expertd::cuda {
namespace {

constexpr int kMaxK = 64;  // of ops_check.h

// Every block keeps the ids in shared memory: one wait for memory instead of several.
__device__ void LoadIds(const ExpertSortLaunch& sort, std::int32_t* ids) {
  for (int slot = threadIdx.x; slot < sort.slots; slot += kRowThreads) ids[slot] = sort.ids[slot];
  __syncthreads();
}

// Slots of bins below `bin` in all, and of `bin` itself before `slot`; by a warp.
struct Place {
  int below = 0, rank = 0;
};
__device__ Place PlaceOf(const ExpertSortLaunch& sort, const std::int32_t* ids, int bin, int slot) {
  const std::int64_t from = bin * sort.ids_per_bin, to = from + sort.ids_per_bin;  // ids of the bin
  const int slots = static_cast<int>(sort.slots);
  Place place;
#pragma unroll 4
  for (int first = 0; first < slots; first += 32) {
    const int other = first + threadIdx.x % 32;
    const int id = other < slots ? ids[other] : -1;
    place.below += __popc(__ballot_sync(kAllSortLanes, id >= 0 && id < from));
    place.rank += __popc(__ballot_sync(kAllSortLanes, id >= from && id < to && other < slot));
  }
  return place;
}

// Position of a slot as LaunchExpertSort would give it; by a warp.
__device__ int PositionOf(const ExpertSortLaunch& sort, const std::int32_t* ids, int slot) {
  if (ids[slot] < 0) return -1;
  const int bin = ids[slot] / static_cast<int>(sort.ids_per_bin);
  const Place place = PlaceOf(sort, ids, bin, slot);
  if (sort.capacity < 0) return place.below + place.rank;
  return place.rank < sort.capacity ? static_cast<int>(bin * sort.capacity + place.rank) : -1;
}

// Part `part` of row n to its slots; part 0 also writes the maps.
template <typename T, int N>
__device__ void SpreadRow(const ExpertSortLaunch& sort, const SpreadRowsLaunch& spread, std::int32_t* ids,
                          std::int64_t n, int part) {
  __shared__ int position[kMaxK];
  const std::int64_t column = (std::int64_t{part} * kRowThreads + threadIdx.x) * N;
  const Pack<T, N> value = LoadSpread<T, N>(spread, n, column);
  LoadIds(sort, ids);
  for (int j = threadIdx.x / 32; j < spread.k; j += kRowWarps) {
    const int slot = static_cast<int>(n * spread.k) + j, at = PositionOf(sort, ids, slot);
    if (threadIdx.x % 32 != 0) continue;
    position[j] = at;
    if (part == 0) sort.positions[slot] = at;
    if (part == 0 && sort.sorted_slots != nullptr && at >= 0) sort.sorted_slots[at] = slot;
  }
  __syncthreads();
  if (column >= spread.d + spread.tail) return;
  SpreadVector<T, N>(spread, n, column, value, [&](int j) { return std::int64_t{position[j]}; });
}

// Counts of all bins, slots over capacity, and the end of sorted_slots; by one block.
__device__ void CountBins(const ExpertSortLaunch& sort) {
  __shared__ int count[kMaxCountedBins], over, held;
  for (int bin = threadIdx.x; bin < sort.bins; bin += kRowThreads) count[bin] = 0;
  if (threadIdx.x == 0) over = held = 0;
  __syncthreads();
  for (int slot = threadIdx.x; slot < sort.slots; slot += kRowThreads) {
    const int bin = BinOf(sort, slot, sort.slots);
    if (bin >= 0) atomicAdd(&count[bin], 1), atomicAdd(&held, 1);  // integers: the order does not show
  }
  __syncthreads();
  for (int bin = threadIdx.x; bin < sort.bins; bin += kRowThreads) {
    sort.counts[bin] = count[bin];
    if (sort.capacity >= 0 && count[bin] > sort.capacity)
      atomicAdd(&over, count[bin] - static_cast<int>(sort.capacity));
  }
  __syncthreads();
  if (threadIdx.x == 0 && sort.overflow != nullptr) *sort.overflow = over;
  if (sort.sorted_slots == nullptr) return;
  for (int i = held + threadIdx.x; i < sort.slots; i += kRowThreads) sort.sorted_slots[i] = -1;
}

template <typename T, int N>
__global__ void __launch_bounds__(kRowThreads)
    SortAndSpreadKernel(const __grid_constant__ ExpertSortLaunch sort, const __grid_constant__ SpreadRowsLaunch spread,
                        int parts) {
  __shared__ std::int32_t ids[kMaxCountedSlots];
  const unsigned spreading = static_cast<unsigned>(spread.n) * parts;
  if (blockIdx.x < spreading) return SpreadRow<T, N>(sort, spread, ids, blockIdx.x / parts, blockIdx.x % parts);
  if (blockIdx.x == spreading) return CountBins(sort);
  LoadIds(sort, ids);
  const std::int64_t row = std::int64_t{blockIdx.x - spreading - 1} * kRowWarps + threadIdx.x / 32;
  if (row >= spread.cleared) return;
  const Split at = Divide(row, spread.max_tokens);
  const Place all = PlaceOf(sort, ids, static_cast<int>(at.quotient), static_cast<int>(sort.slots));
  if (at.remainder >= all.rank) ClearRow<T, N>(spread, row);
}

}  // namespace

int LaunchSortAndSpread(const ExpertSortLaunch& sort, const SpreadRowsLaunch& spread, void* stream) {
  return DispatchRows(spread.element, spread.vectorised, [&]<typename T, int N>() -> int {
    const int parts = static_cast<int>(CeilDiv(spread.d + spread.tail, kRowThreads * N));
    const unsigned blocks = static_cast<unsigned>(spread.n) * parts + 1 + RowBlocks(spread.cleared, kRowWarps);
    SortAndSpreadKernel<T, N><<<blocks, kRowThreads, 0, static_cast<cudaStream_t>(stream)>>>(sort, spread, parts);
    return cudaGetLastError();
  });
}

}  // namespace expertd::cuda
