// Choices of the ops that move rows: plain arithmetic, tested without a GPU.
#pragma once

#include <cstdint>

namespace expertd::cuda {

// Up to here each block finds the rows that nobody names by looking through all slots, which saves two launches; above,
// marks in the workspace cost less.
inline constexpr std::int64_t kMaxScannedSlots = 2048;
constexpr bool ScanSlots(std::int64_t slots) { return slots <= kMaxScannedSlots; }

// Warps that share one dot product of D elements: few, so that each has up to eight loads in flight and little to add
// up with the others; enough that a long row takes one or two rounds. A function of D alone, since it decides the order
// of additions.
constexpr int WarpsPerSlot(std::int64_t d) { return d <= 2048 ? 1 : d <= 4096 ? 2 : d <= 8192 ? 4 : 8; }

}  // namespace expertd::cuda
