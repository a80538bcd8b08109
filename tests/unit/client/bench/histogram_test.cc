#include "client/cpp/program/bench/histogram.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

namespace expertd::client {
namespace {

TEST(HistogramTest, EmptyHasNoPercentiles) {
  const Histogram histogram;
  EXPECT_EQ(histogram.count(), 0);
  EXPECT_EQ(histogram.Percentile(0.5), 0);
  EXPECT_EQ(histogram.mean(), 0);
}

TEST(HistogramTest, OneSampleIsEveryPercentile) {
  for (const std::int64_t value : {0, 1, 63, 64, 127, 128, 129, 1'000'003}) {
    Histogram histogram;
    histogram.Add(value);
    for (const double fraction : {0.001, 0.5, 0.999, 1.0}) EXPECT_EQ(histogram.Percentile(fraction), value) << value;
    EXPECT_EQ(histogram.max(), value);
  }
}

TEST(HistogramTest, ValuesOutsideTheRangeAreClamped) {
  Histogram histogram;
  histogram.Add(-5);
  histogram.Add(std::numeric_limits<std::int64_t>::max());
  EXPECT_EQ(histogram.count(), 2);
  EXPECT_EQ(histogram.Percentile(0.5), 0);
  EXPECT_EQ(histogram.max(), (std::int64_t{1} << 42) - 1);
}

TEST(HistogramTest, SmallValuesAreExact) {
  Histogram histogram;
  for (std::int64_t value = 1; value <= 100; ++value) histogram.Add(value);
  EXPECT_EQ(histogram.Percentile(0.5), 50);
  EXPECT_EQ(histogram.Percentile(0.99), 99);
  EXPECT_EQ(histogram.Percentile(1.0), 100);
  EXPECT_EQ(histogram.mean(), 50.5);
}

TEST(HistogramTest, MergedIsTheSameAsCountedTogether) {
  Histogram a, b, both;
  for (std::int64_t value = 1; value < 1'000'000; value = value * 3 + 1) {
    a.Add(value);
    b.Add(value * 2);
    both.Add(value);
    both.Add(value * 2);
  }
  a.Merge(b);
  EXPECT_EQ(a.count(), both.count());
  EXPECT_EQ(a.max(), both.max());
  EXPECT_EQ(a.mean(), both.mean());
  for (const double fraction : {0.1, 0.5, 0.9, 1.0}) EXPECT_EQ(a.Percentile(fraction), both.Percentile(fraction));
  std::int64_t seen = 0, last = -1;
  a.ForEachBucket([&](std::int64_t most, std::int64_t samples) {
    EXPECT_GT(most, last);
    last = most;
    seen += samples;
  });
  EXPECT_EQ(seen, a.count());
  EXPECT_EQ(last, a.max());
}

TEST(HistogramTest, PercentilesAreAtMostOneBucketAboveTheExactOnes) {
  std::mt19937_64 random(7);
  std::lognormal_distribution<double> durations(12, 2);
  Histogram histogram;
  std::vector<std::int64_t> exact;
  for (int i = 0; i < 20000; ++i) {
    exact.push_back(static_cast<std::int64_t>(durations(random)));
    histogram.Add(exact.back());
  }
  std::sort(exact.begin(), exact.end());
  for (const double fraction : {0.0001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const auto rank = static_cast<std::size_t>(std::ceil(fraction * static_cast<double>(exact.size())));
    const auto wanted = static_cast<double>(exact[rank - 1]);
    const auto got = static_cast<double>(histogram.Percentile(fraction));
    EXPECT_GE(got, wanted) << fraction;
    EXPECT_LE(got, wanted * (1 + 1.0 / 256) + 1) << fraction;
  }
}

}  // namespace
}  // namespace expertd::client
