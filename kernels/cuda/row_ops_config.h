// Choices of the ops that move rows: plain arithmetic, tested without a GPU.
#pragma once

#include <cstdint>

namespace expertd::cuda {

// Up to here each block finds the rows that nobody names by looking through all slots, which saves two launches; above,
// marks in the workspace cost less.
inline constexpr std::int64_t kMaxScannedSlots = 2048;
constexpr bool ScanSlots(std::int64_t slots) { return slots <= kMaxScannedSlots; }

}  // namespace expertd::cuda
