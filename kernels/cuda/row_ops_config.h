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

// On Hopper, a block a multiprocessor that keeps rows in shared memory before it writes them. For as many rows as make
// that worth while, and no more than twice those that fit, or most are read between writes after all.
struct HeldRows {
  int blocks = 0;  // 0: not so
  int rows = 0;    // that a block holds
};
inline constexpr int kHeldWarps = 8;                            // that write
inline constexpr int kHeldOwners = 128, kHeldOwnedRows = 8192;  // blocks that clear, at most so many rows each
inline constexpr std::int64_t kHeldBytes = 212 * 1024, kMinHeldRows = 8, kMaxHeldRows = 256;
inline constexpr std::int64_t kMaxHeldSlots = 128 * 1024;
constexpr int HeldSharedBytes(std::int64_t rows, std::int64_t row_bytes) {
  return static_cast<int>(rows * (row_bytes + 2 * 8));
}
constexpr HeldRows ChooseHeldRows(const DeviceLimits& device, std::int64_t n, std::int64_t k, std::int64_t row_bytes,
                                  std::int64_t cleared) {
  const std::int64_t blocks = device.multiprocessors, rows = std::min(kHeldBytes / row_bytes, kMaxHeldRows);
  const bool fits = n >= kMinHeldRows * blocks && n <= 2 * rows * blocks;
  const bool clears = blocks >= kHeldOwners && cleared <= kHeldOwners * kHeldOwnedRows;
  if (device.compute_capability != 90 || !fits || !clears || n * k > kMaxHeldSlots) return {};
  return {static_cast<int>(blocks), static_cast<int>(rows)};
}

// Whether a gather_reduce that starts early reads its maps before it waits. That saves few vectors a way to memory; of
// many it keeps loads from overlapping (8192 x 8 x 2048: 96 us instead of 82).
constexpr bool GatherAhead(std::int64_t vectors) { return vectors <= std::int64_t{1} << 16; }
// Threads of a block of gather_reduce: few vectors are spread over many blocks, so that all multiprocessors fetch.
constexpr int GatherThreads(std::int64_t vectors) { return vectors < 64 * 1024 ? 64 : 256; }

// Threads that share a row's dot products: a function of the row alone, because it fixes the order of additions.
inline constexpr int kMaxDotThreads = 512;
constexpr int DotThreads(std::int64_t vectors) {
  const std::int64_t rounds = CeilDiv(vectors, kMaxDotThreads);
  return static_cast<int>(std::max<std::int64_t>(32, CeilDiv(CeilDiv(vectors, rounds), 32) * 32));
}

}  // namespace expertd::cuda
