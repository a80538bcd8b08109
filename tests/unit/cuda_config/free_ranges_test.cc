#include "kernels/cuda/engine/free_ranges.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "tests/support/random.h"

namespace expertd::cuda {
namespace {

TEST(FreeRangesTest, WhatIsGivenBackJoinsItsNeighbours) {
  FreeRanges ranges(1024);
  EXPECT_EQ(ranges.Take(256), 0);
  EXPECT_EQ(ranges.Take(1), 256) << "a multiple of 256";
  EXPECT_EQ(ranges.Take(300), 512);
  EXPECT_FALSE(ranges.Take(1).has_value());
  ranges.Give(0, 256);
  ranges.Give(512, 300);
  EXPECT_FALSE(ranges.Take(513).has_value()) << "there is one between them";
  ranges.Give(256, 1);
  EXPECT_EQ(ranges.Take(1024), 0);
}

TEST(FreeRangesTest, LessThanAMultipleHoldsNothing) { EXPECT_FALSE(FreeRanges(255).Take(1).has_value()); }

TEST(FreeRangesTest, NoTwoOverlapAndAllOfItComesBack) {
  constexpr std::int64_t kBytes = 64 << 10;
  struct Range {
    std::int64_t at, bytes;
  };
  FreeRanges ranges(kBytes);
  std::vector<Range> taken;
  testing::Random random(7);
  for (int i = 0; i < 20'000; ++i) {
    if (random.Below(2) == 0) {
      const std::int64_t bytes = 1 + random.Below(5000);
      if (const auto at = ranges.Take(bytes)) {
        ASSERT_LE(*at + bytes, kBytes);
        for (const Range& other : taken) ASSERT_TRUE(*at + bytes <= other.at || other.at + other.bytes <= *at);
        taken.push_back({*at, bytes});
      }
    } else if (!taken.empty()) {
      std::swap(taken[static_cast<std::size_t>(random.Below(std::ssize(taken)))], taken.back());
      ranges.Give(taken.back().at, taken.back().bytes);
      taken.pop_back();
    }
  }
  for (const Range& range : taken) ranges.Give(range.at, range.bytes);
  EXPECT_EQ(ranges.Take(kBytes), 0);
}

}  // namespace
}  // namespace expertd::cuda
