// When requests are due, how many rows they have, and who chooses their experts.
#include "client/cpp/program/bench/arrivals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>

#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/bench/row_counts.h"

namespace expertd::client {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<Nanos> Take(Arrivals arrivals, int count) {
  std::vector<Nanos> out;
  for (int i = 0; i < count; ++i) out.push_back(arrivals.Next());
  return out;
}

TEST(ArrivalsTest, ConstantDoesNotDrift) {
  Arrivals arrivals = Arrivals::Constant(3);
  for (int i = 0; i < 3'000'000; ++i) arrivals.Next();
  EXPECT_EQ(arrivals.Next(), 1'000'000 * kNanosPerSecond);
}

TEST(ArrivalsTest, PoissonHasItsRateAndExponentialGaps) {
  constexpr int kCount = 200'000;
  const std::vector<Nanos> at = Take(Arrivals::Poisson(1000, /*seed=*/1), kCount);
  EXPECT_EQ(at, Take(Arrivals::Poisson(1000, 1), kCount));
  EXPECT_NE(at, Take(Arrivals::Poisson(1000, 2), kCount));
  EXPECT_NEAR(static_cast<double>(at.back()), kCount * 1e6, kCount * 1e6 * 0.01);
  int longer = 0;  // than the mean gap: exp(-1) of all
  for (std::size_t i = 1; i < at.size(); ++i) longer += at[i] - at[i - 1] > 1'000'000;
  EXPECT_NEAR(longer / static_cast<double>(kCount), std::exp(-1), 0.005);
}

TEST(ArrivalsTest, ATraceRepeatsAndStretches) {
  const std::vector<Nanos> trace = {0, 10, 40};
  EXPECT_THAT(Take(Arrivals::Recorded(trace, 0), 7), ElementsAre(0, 10, 40, 60, 70, 100, 120));
  // Mean gap 20 ns is 50 million a second; at half that rate everything takes twice as long.
  EXPECT_THAT(Take(Arrivals::Recorded(trace, 25e6), 4), ElementsAre(0, 20, 80, 120));
  EXPECT_THAT(Take(Arrivals::Recorded({0}, 0), 3), ElementsAre(0, kNanosPerSecond, 2 * kNanosPerSecond));
}

TEST(TraceFileTest, ReadsSecondsAndRows) {
  const auto trace = ParseTrace("seconds,rows\n# a comment\n5.5,16\n\n5.5, 1\r\n6.000000001,7\n", "t.csv");
  ASSERT_TRUE(trace.ok()) << trace.status();
  EXPECT_THAT(trace->at, ElementsAre(0, 0, 500'000'001));
  EXPECT_THAT(trace->rows, ElementsAre(16, 1, 7));
}

TEST(TraceFileTest, ErrorsNameTheLine) {
  const std::pair<const char*, const char*> wrong[] = {{"", "t.csv: no request in it"},
                                                       {"1,1\n2", "t.csv:2: \"2\" is not"},
                                                       {"1,0", "t.csv:1: rows=0 is not at least 1"},
                                                       {"2,1\n1,1", "t.csv:2: seconds=1 is before"},
                                                       {"1e30,1", "t.csv:1: seconds=1e30 is not within"},
                                                       {"0,1\nnan,1", "t.csv:2: seconds=nan"}};
  for (const auto& [text, error] : wrong) {
    EXPECT_THAT(std::string(ParseTrace(text, "t.csv").status().message()), HasSubstr(error)) << text;
  }
  EXPECT_THAT(std::string(ReadTrace("/nowhere.csv").status().message()), HasSubstr("/nowhere.csv: cannot be read"));
}

std::map<std::int64_t, int> Drawn(const RowCounts& rows, int count) {
  std::mt19937_64 random(5);
  std::map<std::int64_t, int> seen;
  for (int i = 0; i < count; ++i) ++seen[rows.Rows(i, random)];
  return seen;
}

TEST(RowCountsTest, FixedUniformAndZipf) {
  EXPECT_THAT(Drawn(*RowCounts::Parse("7"), 10), ElementsAre(std::pair(7, 10)));
  const auto uniform = Drawn(*RowCounts::Parse("uniform:2..5"), 40'000);
  ASSERT_EQ(uniform.size(), 4u);
  for (const auto& [rows, count] : uniform) EXPECT_NEAR(count, 10'000, 500) << rows;
  const auto parsed = RowCounts::Parse("zipf:1..3:1");
  EXPECT_EQ(parsed->least(), 1);
  EXPECT_EQ(parsed->most(), 3);
  const auto zipf = Drawn(*parsed, 110'000);  // weights 6 : 3 : 2
  EXPECT_NEAR(zipf.at(1), 60'000, 1500);
  EXPECT_NEAR(zipf.at(2), 30'000, 1500);
  EXPECT_NEAR(zipf.at(3), 20'000, 1500);
}

TEST(RowCountsTest, FromATrace) {
  const std::string path = ::testing::TempDir() + "row_counts_test.csv";
  std::ofstream(path) << "0,4\n1,9\n";
  const auto rows = RowCounts::Parse("trace:" + path);
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->most(), 9);
  EXPECT_THAT(Drawn(*rows, 5), ElementsAre(std::pair(4, 3), std::pair(9, 2)));
}

TEST(RowCountsTest, ErrorsNameWhatIsWrong) {
  for (const char* text : {"", "0", "-3", "x", "uniform:", "uniform:5..2", "uniform:0..2", "uniform:3", "zipf:1..4:x",
                           "zipf:1..4:-1", "zipf:1..99999999", "zipf:1..2:3:4"}) {
    const auto rows = RowCounts::Parse(text);
    EXPECT_EQ(rows.status().code(), absl::StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(std::string(rows.status().message()), HasSubstr("rows: ")) << text;
  }
}

std::vector<int> ExpertCounts(double exponent) {
  v1::Layer layer;
  layer.set_hidden_size(2);
  layer.set_num_experts(8);
  layer.set_experts_per_token(2);
  const Payloads payloads({layer}, 1000, ExpertSkew(exponent), 3);
  const Request request = payloads.Make(0, 0, 1000);
  const std::string& ids = request.head.routing().topk_ids();
  std::vector<int> counts(8);
  for (std::size_t at = 0; at < ids.size(); at += 4) {
    std::int32_t id;
    std::memcpy(&id, ids.data() + at, 4);
    ++counts[static_cast<std::size_t>(id)];
  }
  std::sort(counts.rbegin(), counts.rend());
  return counts;
}

TEST(RoutingTest, SkewMakesSomeExpertsPopular) {
  const std::vector<int> even = ExpertCounts(0), skewed = ExpertCounts(1.5);
  EXPECT_NEAR(even.front(), 250, 60);
  EXPECT_NEAR(even.back(), 250, 60);
  EXPECT_GT(skewed.front(), 750);  // nearly every row
  EXPECT_LT(skewed.back(), 100);
}

TEST(RoutingTest, Parses) {
  EXPECT_EQ(*ParseRouting("server"), ExpertSkew());
  EXPECT_EQ(*ParseRouting("uniform"), ExpertSkew(0));
  EXPECT_EQ(*ParseRouting("zipf:1.25"), ExpertSkew(1.25));
  for (const char* text : {"", "zipf", "zipf:", "zipf:-1", "zipf:11", "me"})
    EXPECT_FALSE(ParseRouting(text).ok()) << text;
}

}  // namespace
}  // namespace expertd::client
