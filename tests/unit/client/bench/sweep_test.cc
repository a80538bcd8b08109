// The search for the knee, objectives, and what repeated windows say.
#include "client/cpp/program/bench/sweep.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "client/cpp/program/bench/saturation.h"
#include "client/cpp/program/bench/slo.h"
#include "client/cpp/program/bench/statistics.h"

namespace expertd::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// Tries loads against a server that holds up to `limit` and answers at most that many a second.
std::vector<Probe> Sweep(const SweepPlan& plan, double limit) {
  std::vector<Probe> probes;
  while (const auto load = NextLoad(plan, probes)) {
    const double throughput = std::min(*load, limit);
    probes.push_back({.load = *load,
                      .holds = !plan.has_slo || *load <= limit,
                      .throughput = throughput,
                      .latency = *load <= limit ? 1 + *load / limit : 3 * *load / limit});
    if (probes.size() > 100) break;
  }
  return probes;
}

TEST(SweepTest, FindsTheKneeOfAnObjective) {
  for (const double limit : {1.5, 100.0, 777.0, 9999.0}) {
    const SweepPlan plan{.from = 1, .to = 1e6, .refinements = 6, .has_slo = true};
    const auto probes = Sweep(plan, limit);
    const auto knee = Knee(plan, probes);
    ASSERT_TRUE(knee.has_value());
    EXPECT_LE(probes[*knee].load, limit);
    EXPECT_GT(probes[*knee].load, limit / 1.02) << "a doubling halved six times is a factor of 2^(1/64)";
  }
}

TEST(SweepTest, WholeLoadsEndBetweenNeighbours) {
  const SweepPlan plan{.from = 1, .to = 4096, .refinements = 20, .whole = true, .has_slo = true};
  const auto probes = Sweep(plan, 37);
  EXPECT_EQ(probes[*Knee(plan, probes)].load, 37);
  EXPECT_LT(probes.size(), 16u);
}

TEST(SweepTest, GoesDownWhenTheFirstLoadIsTooMuch) {
  const SweepPlan plan{.from = 64, .to = 64, .refinements = 5, .has_slo = true};
  const auto probes = Sweep(plan, 9);
  EXPECT_LE(probes[*Knee(plan, probes)].load, 9);
  EXPECT_GT(probes[*Knee(plan, probes)].load, 8);
  EXPECT_EQ(Knee(plan, Sweep(plan, 0.5)), std::nullopt) << "gives up";
}

TEST(SweepTest, WithoutAnObjectiveItEndsWhenNothingIsGained) {
  const SweepPlan plan{.from = 1, .to = 4096, .whole = true};
  const auto probes = Sweep(plan, 100);
  EXPECT_EQ(probes.back().load, 256) << "128 still gained over 64";
  EXPECT_EQ(probes[*Knee(plan, probes)].load, 64) << "the most throughput for its latency";
}

TEST(SweepTest, StopsAtTheHighestLoad) {
  const SweepPlan plan{.from = 3, .to = 10, .has_slo = true};
  const auto probes = Sweep(plan, 1000);
  EXPECT_EQ(probes.size(), 3u);
  EXPECT_EQ(probes.back().load, 10);
}

TEST(SloTest, Parses) {
  const auto slo = ParseSlo("p99.9=1.5ms,errors=0.5%");
  ASSERT_TRUE(slo.ok()) << slo.status();
  EXPECT_DOUBLE_EQ(slo->percentile, 0.999);
  EXPECT_EQ(slo->limit, 1'500'000);
  EXPECT_DOUBLE_EQ(slo->failed_share, 0.005);
  EXPECT_EQ(ParseSlo("p50=800us")->limit, 800'000);
  EXPECT_EQ(ParseSlo("p100=2s")->limit, 2 * kNanosPerSecond);
  for (const char* text : {"", "p99", "p99=", "p99=2", "p99=2m", "p0=2ms", "p101=2ms", "p99=-2ms", "q99=2ms",
                           "errors=1%", "p99=2ms,errors=1", "p99=2ms,"}) {
    EXPECT_THAT(std::string(ParseSlo(text).status().message()), HasSubstr("slo: ")) << text;
  }
}

Window Answered(int count, Nanos latency, int failed = 0) {
  Window window{.seconds = 1};
  for (int i = 0; i < count; ++i) window.latency.Add(latency);
  window.statuses[absl::StatusCode::kOk] = count;
  window.statuses[absl::StatusCode::kUnavailable] = failed;
  window.completed = count;
  return window;
}

TEST(SloTest, ViolationsSayWhy) {
  const Slo slo = *ParseSlo("p99=2ms,errors=1%");
  EXPECT_EQ(Violation(slo, Answered(100, 2'000'000), 100), std::nullopt);
  EXPECT_THAT(*Violation(slo, Answered(100, 2'100'000), 100), HasSubstr("p99 is 2.100 ms, more than 2.000 ms"));
  EXPECT_THAT(*Violation(slo, Answered(98, 1, 2), 100), HasSubstr("2.00 % failed, more than 1.00 %"));
  EXPECT_THAT(*Violation(slo, Answered(90, 1), 100), HasSubstr("90.0 answered of 100.0 offered a second"));
  EXPECT_THAT(*Violation(std::nullopt, Answered(999, 1, 2), 0), HasSubstr("failed"));
  EXPECT_EQ(Violation(std::nullopt, Answered(1, 9'000'000'000), 0), std::nullopt) << "no objective, no limit";
  EXPECT_EQ(*Violation(slo, Answered(0, 1), 100), "nothing was answered");
}

TEST(StatisticsTest, StudentsInterval) {
  EXPECT_TRUE(std::isnan(EstimateOf({}).half_width));
  EXPECT_TRUE(std::isnan(EstimateOf({4}).half_width));
  EXPECT_EQ(EstimateOf({4}).mean, 4);
  const Estimate two = EstimateOf({1, 3});  // s = sqrt(2), t = 12.706
  EXPECT_EQ(two.mean, 2);
  EXPECT_NEAR(two.half_width, 12.706, 1e-9);
  const Estimate five = EstimateOf({2, 4, 4, 4, 6});  // s = sqrt(2), t = 2.776
  EXPECT_NEAR(five.half_width, 2.776 * std::sqrt(2.0 / 5), 1e-9);
  EXPECT_EQ(EstimateOf(std::vector<double>(50, 7)).half_width, 0);
}

TEST(SaturationTest, SignsAreSaid) {
  const OwnUse idle{.cpu_seconds = 1, .wall_seconds = 10, .cores = 2, .max_in_flight = 64};
  const SendingFacts fine{.operations = 1000, .held_back = 0, .lag_p99_us = 90, .latency_p50_us = 500};
  EXPECT_THAT(SaturationSigns(idle, fine), IsEmpty());
  EXPECT_THAT(SaturationSigns({.cpu_seconds = 18, .wall_seconds = 10, .cores = 2}, fine),
              ElementsAre(HasSubstr("used 1.8 of its 2 processors")));
  EXPECT_THAT(SaturationSigns(idle, {.operations = 1000, .lag_p99_us = 300, .latency_p50_us = 500}),
              ElementsAre(HasSubstr("sent more than 300 us after their time")));
  EXPECT_THAT(SaturationSigns(idle, {.operations = 1000, .lag_p99_us = 300, .latency_p50_us = 50'000}), IsEmpty())
      << "does not matter at 50 ms";
  EXPECT_THAT(SaturationSigns(idle, {.operations = 1000, .held_back = 5, .latency_p50_us = 500}),
              ElementsAre(HasSubstr("5 of 1000 operations waited in the load tester because 64 were unanswered")));
  EXPECT_GE(UsableCores(), 1);
  EXPECT_GT(CpuSecondsSoFar(), 0);
}

}  // namespace
}  // namespace expertd::client
