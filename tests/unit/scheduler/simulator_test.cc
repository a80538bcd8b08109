#include "server/scheduler/simulator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace expertd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using ::testing::HasSubstr;

absl::StatusOr<std::vector<TraceRequest>> Read(const std::string& text) {
  std::istringstream in(text);
  return ReadTrace(in);
}

TEST(TraceTest, ColumnsMayComeInAnyOrderAndBeLeftOut) {
  const auto trace = Read("rows,seconds,tenant\n4,0,a\n\n# later\n1, 0.0015 ,b\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  ASSERT_EQ(trace->size(), 2u);
  EXPECT_EQ((*trace)[0].rows, 4);
  EXPECT_EQ((*trace)[1].at, microseconds(1500));
  EXPECT_EQ((*trace)[1].tenant, "b");
  EXPECT_EQ((*trace)[1].priority, 0);
}

TEST(TraceTest, WithoutNamesTheColumnsAreTimeAndRows) {
  const auto trace = Read("0,3\n0.25,2\n");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_EQ((*trace)[1].at, milliseconds(250));
  EXPECT_EQ((*trace)[1].rows, 2);
}

TEST(TraceTest, WhatIsWrongIsNamedWithItsLine) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "no request"},
      {"seconds,rows\n", "no request"},
      {"seconds\n1\n", "line 1: the column rows is missing"},
      {"seconds,rows,size\n", "'size' is no column"},
      {"seconds,rows,rows\n", "named twice"},
      {"seconds,rows\n1,0\n", "line 2: rows='0' is not a number from 1"},
      {"1,1\n1,x\n", "line 2: rows='x'"},
      {"1\n", "line 1: 1 cells, 2 columns"},
      {"-1,1\n", "seconds='-1' is not a time"},
      {"nan,1\n", "'nan' is no column"},
      {"seconds,rows,priority\n1,1,10\n", "from 0 to 9"},
      {"5,1\n4,1\n", "line 2: seconds: before"},
  };
  for (const auto& [text, what] : cases) {
    EXPECT_EQ(Read(text).status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(Read(text).status().message(), HasSubstr(what));
  }
}

TEST(TraceTest, ARateStretchesTime) {
  const std::vector<TraceRequest> trace =
      AtRate({{.at = milliseconds(0), .rows = 6}, {.at = milliseconds(10), .rows = 4}}, 100);
  EXPECT_EQ(trace[1].at, milliseconds(100));
  EXPECT_TRUE(AtRate({}, 1).empty());
}

constexpr CostModel kCost = {.batch_seconds = 10e-3, .row_seconds = 1e-3, .overhead_seconds = 1e-3};
const SimulatedServer kServer = {.cost = kCost, .limits = {.max_rows = 4}};

TEST(SimulatorTest, ALoneRequestTakesItsBatchAndTheWay) {
  const std::vector<Fate> fates = Simulate(kServer, {{.rows = 2}});
  ASSERT_EQ(fates.size(), 1u);
  EXPECT_EQ(fates[0].code, absl::StatusCode::kOk);
  EXPECT_NEAR(fates[0].seconds, 13e-3, 1e-6);
}

TEST(SimulatorTest, WhatComesDuringABatchSharesTheNext) {
  const std::vector<Fate> fates = Simulate(kServer, {{.rows = 1},
                                                     {.at = milliseconds(1), .rows = 1},
                                                     {.at = milliseconds(2), .rows = 2},
                                                     {.at = milliseconds(3), .rows = 9}});
  EXPECT_NEAR(fates[0].seconds, 12e-3, 1e-6);
  // Four rows from 11 ms on: all of two requests, and the first of nine rows.
  EXPECT_NEAR(fates[1].seconds, 11e-3 + 14e-3 - 1e-3 + 1e-3, 1e-6);
  EXPECT_NEAR(fates[2].seconds, 11e-3 + 14e-3 - 2e-3 + 1e-3, 1e-6);
  EXPECT_NEAR(fates[3].seconds, 11e-3 + 3 * 14e-3 - 3e-3 + 1e-3, 1e-6);
}

TEST(SimulatorTest, WhatCannotBeServedInTimeIsRefusedOrDropped) {
  std::vector<TraceRequest> trace;
  for (int i = 0; i < 400; ++i) trace.push_back({.at = i * milliseconds(1), .rows = 1, .timeout = milliseconds(40)});
  const std::vector<Fate> fates = Simulate(kServer, trace);
  const Forecast forecast = Summarise(trace, fates);
  const double capacity = Capacity(kCost, 4, 1);
  EXPECT_NEAR(capacity, 4 / 14e-3, 1e-6);
  EXPECT_NEAR(forecast.goodput, capacity, 0.1 * capacity);
  EXPECT_GT(forecast.refused, 0.5);
  EXPECT_LE(forecast.p99, 40e-3 + 14e-3 + 1e-3) << "dropped when a batch forms, not in it";
}

TEST(SimulatorTest, TenantsShare) {
  std::vector<TraceRequest> trace;
  for (int i = 0; i < 300; ++i) trace.push_back({.rows = 4, .tenant = "flood"});
  for (int i = 0; i < 40; ++i) trace.push_back({.at = i * milliseconds(28), .rows = 4, .tenant = "calm"});
  std::sort(trace.begin(), trace.end(), [](const auto& a, const auto& b) { return a.at < b.at; });
  const std::vector<Fate> fates = Simulate(kServer, trace);
  for (std::size_t i = 0; i < trace.size(); ++i) {
    if (trace[i].tenant != "calm") continue;
    EXPECT_LE(fates[i].seconds, 3 * 14e-3 + 2e-3) << i;
  }
}

TEST(SimulatorTest, AWindowWaitsForCompany) {
  const std::vector<Fate> fates =
      Simulate({.cost = kCost, .limits = {.max_rows = 4, .window = milliseconds(5)}}, {{.rows = 1}});
  EXPECT_NEAR(fates[0].seconds, 17e-3, 1e-6);
}

TEST(FitCostTest, FindsTheTwoTerms) {
  const CostModel cost = FitCost({{1, 11e-3}, {2, 12e-3}, {4, 14e-3}}, 1e-3);
  EXPECT_NEAR(cost.batch_seconds, 10e-3, 1e-9);
  EXPECT_NEAR(cost.row_seconds, 1e-3, 1e-9);
  EXPECT_EQ(cost.overhead_seconds, 1e-3);
}

TEST(FitCostTest, OneSizeOrNothingIsNoSlope) {
  EXPECT_NEAR(FitCost({{4, 8e-3}, {4, 10e-3}}, 0).batch_seconds, 9e-3, 1e-9);
  EXPECT_EQ(FitCost({}, 0).batch_seconds, 0);
}

}  // namespace
}  // namespace expertd
