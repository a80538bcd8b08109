// How a stable sort of slots by bin (expert or shard) is divided: plain arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

struct ExpertSortConfig {
  bool few = false;                 // a thread a slot; every block ranks all of them
  int blocks = 1;                   // each ranks slots_per_warp * warps neighbouring slots
  int warps = 1;                    // ranking warps of a block; its threads are always kSortThreads
  std::int64_t slots_per_warp = 0;  // a multiple of 32
  int shared_bytes = 0;             // of the placing kernel
};

inline constexpr int kSortThreads = 1024;
// One block has no second launch and no counts in memory; above this many slots its warps would take several steps.
inline constexpr std::int64_t kMaxSlotsOfOneBlock = 1024;
inline constexpr std::int64_t kSlotsPerBlock = 1024;
// Up to these, the kernel of few slots: counters of 16 bits for each warp and bin, a bin a thread, and the part of the
// sorted array that one block puts together in shared memory.
inline constexpr std::int64_t kFewSlots = kSortThreads, kFewBins = 512, kFewRange = 2048;
// Up to these and kFewBins, without padding: a slot's position is counted, two at once, and so is where each bin
// begins.
inline constexpr std::int64_t kCountedSlots = 2048;
inline constexpr int kCountingThreads = 256;
// Every block adds up the counts of all blocks, so there must not be too many.
inline constexpr int kMaxSortBlocks = 128;
// A counter for each warp and bin; what remains of 99 KiB (the least of any device from sm_80) holds two bin arrays.
inline constexpr std::int64_t kMaxCounterBytes = 64 * 1024;

constexpr ExpertSortConfig ChooseExpertSort(std::int64_t slots, std::int64_t bins) {
  ExpertSortConfig config;
  config.few = slots <= kFewSlots && bins <= kFewBins;
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

// Lanes that count together, a power of two: each looks at some 64 slots, or 128 where there are many.
constexpr int CountingLanes(std::int64_t slots) {
  int lanes = 1;
  while (lanes < 32 && lanes * 64 < slots) lanes *= 2;
  return lanes;
}
constexpr int CountingBlocks(std::int64_t slots, std::int64_t bins) {
  return static_cast<int>(CeilDiv((CeilDiv(slots, 2) + bins) * CountingLanes(slots), kCountingThreads));
}

// Bytes of shared memory of the kernel of few slots: at most 54 KiB.
constexpr int FewSharedBytes(std::int64_t bins) {
  const std::int64_t words = CeilDiv(bins, 2);  // two counters each
  return static_cast<int>(((kSortThreads / 32 + 4) * words + bins + 1 + 2 * kFewRange) * 4);
}

}  // namespace expertd::cuda
