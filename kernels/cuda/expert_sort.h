// A stable counting sort of slots by bin, the base of moe_align_block_size (bins are experts), fused_routing_scatter
// (experts, fixed capacity) and fused_dispatch_pack (bins are shards): device side, for plain callers.
#pragma once

#include <cstdint>

#include "kernels/cuda/expert_sort_config.h"

namespace expertd::cuda {

struct ExpertSortLaunch {
  std::int64_t slots = 0, bins = 0;
  ExpertSortConfig config;
  std::int32_t* block_counts = nullptr;  // [blocks, bins] scratch; null when there is one block

  const std::int32_t* ids = nullptr;  // [slots]; -1 belongs to no bin
  std::int64_t ids_per_bin = 1;       // bin = id / ids_per_bin
  std::int64_t block = 1;             // each bin's run is padded to a multiple of this
  std::int32_t* counts = nullptr;     // [bins]

  // Sorted layout; each may be null.
  std::int32_t* offsets = nullptr;        // [bins + 1]
  std::int32_t* sorted_slots = nullptr;   // [padded]  slot of each position, -1 where there is none
  std::int64_t padded = 0;                // positions of sorted_slots, a multiple of block
  std::int32_t* block_experts = nullptr;  // [padded / block]

  std::int32_t* positions = nullptr;  // [slots] or null: position of each slot, or -1

  // Not negative: the batched layout. A slot's position is bin * capacity + rank, or -1 when rank >= capacity.
  std::int64_t capacity = -1;
  std::int32_t* overflow = nullptr;  // [1] slots over capacity; null in the sorted layout

  // Set to zero on the way, for the kernel that follows.
  std::int32_t* cleared = nullptr;  // [cleared_count]
  std::int64_t cleared_count = 0;
};

// The sizes, the configuration and the scratch memory filled in; pointers are the caller's to set.
template <typename Scratch>
ExpertSortLaunch PlanSort(std::int64_t slots, std::int64_t bins, Scratch& scratch) {
  ExpertSortLaunch launch = {.slots = slots, .bins = bins, .config = ChooseExpertSort(slots, bins), .padded = slots};
  if (launch.config.blocks > 1) launch.block_counts = scratch.template Take<std::int32_t>(launch.config.blocks * bins);
  return launch;
}

// Enqueues one kernel, or two where config.blocks > 1, the second of which starts early where it can, on `stream` (a
// cudaStream_t); the answer is a cudaError_t.
int LaunchExpertSort(const ExpertSortLaunch& launch, void* stream);
// The parts of it: for config.few; for up to kCountedSlots slots, kFewBins bins and neither padding nor capacity.
int LaunchExpertSortFew(const ExpertSortLaunch& launch, void* stream);
int LaunchExpertSortCounted(const ExpertSortLaunch& launch, void* stream);

}  // namespace expertd::cuda
