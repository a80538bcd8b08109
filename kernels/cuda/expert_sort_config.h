// How a stable sort of slots by bin (expert or shard) is divided: plain arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

struct ExpertSortConfig {
  int blocks = 1;                   // each ranks slots_per_warp * warps neighbouring slots
  int warps = 1;                    // ranking warps of a block; its threads are always kSortThreads
  std::int64_t slots_per_warp = 0;  // a multiple of 32
  int shared_bytes = 0;             // of the placing kernel
};

inline constexpr int kSortThreads = 1024;
// One block has no second launch and no counts in memory; above this many slots its warps would take several steps.
inline constexpr std::int64_t kMaxSlotsOfOneBlock = 1024;
inline constexpr std::int64_t kSlotsPerBlock = 1024;
// Every block adds up the counts of all blocks, so there must not be too many.
inline constexpr int kMaxSortBlocks = 128;
// A counter for each warp and bin; what remains of 99 KiB (the least of any device from sm_80) holds two bin arrays.
inline constexpr std::int64_t kMaxCounterBytes = 64 * 1024;

constexpr ExpertSortConfig ChooseExpertSort(std::int64_t slots, std::int64_t bins) {
  ExpertSortConfig config;
  if (slots > kMaxSlotsOfOneBlock) {
    config.blocks = static_cast<int>(std::min<std::int64_t>(CeilDiv(slots, kSlotsPerBlock), kMaxSortBlocks));
  }
  const std::int64_t slots_per_block = CeilDiv(slots, config.blocks);
  const std::int64_t fitting = kMaxCounterBytes / (bins * 4);
  config.warps =
      static_cast<int>(std::max<std::int64_t>(1, std::min<std::int64_t>({32, fitting, CeilDiv(slots_per_block, 32)})));
  config.slots_per_warp = CeilDiv(CeilDiv(slots_per_block, config.warps), 32) * 32;
  config.shared_bytes = static_cast<int>((config.warps * bins + 2 * bins + 1) * 4);
  return config;
}

}  // namespace expertd::cuda
