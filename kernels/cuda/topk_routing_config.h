// Which kernel routes, and with how many logits a lane: plain arithmetic, tested without a GPU.
#pragma once

#include <cstdint>

namespace expertd::cuda {

inline constexpr int kRoutingWarpsPerBlock = 4;
inline constexpr int kMaxValuesPerLane = 16;

// Logits that a lane keeps in registers when a warp takes a row: 1, 2, 4, 8 or 16; 0: a block takes a row.
constexpr int RoutingValuesPerLane(std::int64_t e, std::int64_t n_group) {
  if (n_group > 32) return 0;
  for (int values = 1; values <= kMaxValuesPerLane; values *= 2) {
    if (e <= 32 * values) return values;
  }
  return 0;
}

}  // namespace expertd::cuda
