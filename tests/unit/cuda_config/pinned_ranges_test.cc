#include "kernels/cuda/engine/pinned_ranges.h"

#include <gtest/gtest.h>

#include <array>

namespace expertd::cuda {
namespace {

TEST(PinnedRangesTest, ARangeIsKnownFromItsFirstByteToItsLast) {
  std::array<std::byte, 64> bytes;
  PinnedRanges ranges;
  EXPECT_FALSE(ranges.Contains(bytes.data(), 1));
  ranges.Add(bytes.data() + 16, 32);
  EXPECT_TRUE(ranges.Contains(bytes.data() + 16, 32));
  EXPECT_TRUE(ranges.Contains(bytes.data() + 47, 1));
  EXPECT_FALSE(ranges.Contains(bytes.data() + 15, 1));
  EXPECT_FALSE(ranges.Contains(bytes.data() + 15, 33));
  EXPECT_FALSE(ranges.Contains(bytes.data() + 16, 33));
  EXPECT_FALSE(ranges.Contains(bytes.data() + 48, 1));
  EXPECT_FALSE(ranges.Contains(bytes.data() + 17, std::size_t{0} - 1)) << "a size that wraps around";
}

// Neighbours may be freed one by one, so what spans two of them is not one range.
TEST(PinnedRangesTest, RangesStandForThemselvesUntilTheyAreRemoved) {
  std::array<std::byte, 64> bytes;
  PinnedRanges ranges;
  ranges.Add(bytes.data(), 32);
  ranges.Add(bytes.data() + 32, 32);
  EXPECT_FALSE(ranges.Contains(bytes.data(), 64));
  EXPECT_TRUE(ranges.Contains(bytes.data() + 32, 32));
  ranges.Remove(bytes.data());
  EXPECT_FALSE(ranges.Contains(bytes.data(), 32));
  EXPECT_TRUE(ranges.Contains(bytes.data() + 40, 8));
}

}  // namespace
}  // namespace expertd::cuda
