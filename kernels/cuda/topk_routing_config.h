// Which kernel routes, and with how many logits a lane: plain arithmetic, tested without a GPU.
#pragma once

#include <cstdint>

namespace expertd::cuda {

inline constexpr int kRoutingWarpsPerBlock = 4;
inline constexpr int kMaxValuesPerLane = 16;

// Rows from which several of them share a warp: it does less work, one step after another; below, the device has warps
// to spare. The answers' bits are the same. Measured on an H200: at 4096 x 128 a warp a row wins by 1.6 us, at 16384 x
// 128 it loses by 6.6 (deepseek_v3).
inline constexpr std::int64_t kManyRoutingRows = 8192;
// What the kernel of many rows keeps of each list, and the step in which it looks at a row.
inline constexpr int kRoutingChunk = 8;

struct RoutingLanes {
  int lanes = 0;   // that share a row; 0: not for this kernel
  int values = 0;  // of each lane
};
// `group` experts of a group, 0 when there are none: a group must be whole chunks of one lane. At 128 experts, more
// lanes where the groups allow it: 16384 rows of four lanes are 16 warps a multiprocessor, too few to hide their own
// latencies. Of choices with room for the same experts both add in the same order; one with more room does not.
constexpr RoutingLanes RoutingLanesOfManyRows(std::int64_t e, std::int64_t k, std::int64_t group) {
  constexpr RoutingLanes kChoices[] = {{4, 8}, {4, 16}, {8, 16}, {4, 32}, {8, 32}, {16, 32}};
  if (k > kRoutingChunk) return {};
  std::int64_t room = 0;  // of the smallest choice that holds e
  for (const RoutingLanes& choice : kChoices) {
    const std::int64_t size = choice.lanes * choice.values;
    if (e > size) continue;
    if (room == 0) room = size;
    if (size != room) break;
    if (group == 0 || (group % kRoutingChunk == 0 && choice.values % group == 0)) return choice;
  }
  return {};
}

// The kernel of softmax without bias or groups: few rows want many lanes, many rows little work. Of equal room, so that
// both add in the same order. Measured on an H200: eight lanes win by 1 us at 16384 x 64 and by 0.2 at 16384 x 128,
// and lose by as much at 4096 x 64 and 64 x 128.
constexpr RoutingLanes RoutingLanesOfSoftmax(std::int64_t n, std::int64_t e, std::int64_t k) {
  if (k > kRoutingChunk || e > 512) return {};
  if (e <= 32) return {8, 4};
  if (e <= 64) return n < kManyRoutingRows ? RoutingLanes{16, 4} : RoutingLanes{8, 8};
  if (e <= 128) return n < kManyRoutingRows ? RoutingLanes{16, 8} : RoutingLanes{8, 16};
  return e <= 256 ? RoutingLanes{16, 16} : RoutingLanes{32, 16};
}

// Logits that a lane keeps in registers when a warp takes a row: 1, 2, 4, 8 or 16; 0: a block takes a row.
constexpr int RoutingValuesPerLane(std::int64_t e, std::int64_t n_group) {
  if (n_group > 32) return 0;
  for (int values = 1; values <= kMaxValuesPerLane; values *= 2) {
    if (e <= 32 * values) return values;
  }
  return 0;
}

}  // namespace expertd::cuda
