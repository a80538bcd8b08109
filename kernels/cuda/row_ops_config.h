// Choices of the ops that move rows: plain arithmetic, tested without a GPU.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// Up to here each block finds the rows that nobody names by looking through all slots, which saves two launches; above,
// marks in the workspace cost less.
inline constexpr std::int64_t kMaxScannedSlots = 2048;
constexpr bool ScanSlots(std::int64_t slots) { return slots <= kMaxScannedSlots; }

// Up to here scatter and pack are one kernel, in which every slot counts the slots before it itself; above, a sort and
// then the rows.
inline constexpr std::int64_t kMaxCountedSlots = 512, kMaxCountedBins = 4096;
constexpr bool CountSlots(std::int64_t slots, std::int64_t bins) {
  return slots > 0 && slots <= kMaxCountedSlots && bins <= kMaxCountedBins;
}

// Threads of a block of gather_reduce: few vectors are spread over many blocks, so that all multiprocessors fetch.
constexpr int GatherThreads(std::int64_t vectors) { return vectors < 64 * 1024 ? 64 : 256; }

// Threads that share a row's dot products: a function of the row alone, because it fixes the order of additions.
inline constexpr int kMaxDotThreads = 512;
constexpr int DotThreads(std::int64_t vectors) {
  const std::int64_t rounds = CeilDiv(vectors, kMaxDotThreads);
  return static_cast<int>(std::max<std::int64_t>(32, CeilDiv(CeilDiv(vectors, rounds), 32) * 32));
}

}  // namespace expertd::cuda
