// Loads, and the check after them, against a server that is right, wrong, full, gone or stopped for a while.
#include "client/cpp/program/bench/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "client/cpp/program/bench/campaign.h"
#include "client/cpp/program/layers.h"
#include "tests/unit/client/fake_server.h"

namespace expertd::client {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr auto kSilent = [](double, const std::string&) {};

LoadOptions Rows(const char* rows, LoadOptions options) {
  options.rows = *RowCounts::Parse(rows);
  return options;
}

class LoadTest : public ::testing::TestWithParam<Mode> {
 protected:
  BenchReport Run(const std::string& model, Campaign campaign, int layers = 1) {
    campaign.load.mode = GetParam();
    const auto client = Client::Connect({.endpoint = server_.address(), .connections = 2});
    EXPECT_TRUE(client.ok());
    BenchReport report{.layers = std::vector<v1::Layer>(static_cast<std::size_t>(layers), FakeServer::LayerOf(model)),
                       .connections = 2,
                       .options = campaign.load,
                       .swept = campaign.sweep.has_value()};
    const absl::Status status = RunCampaign(**client, campaign, kSilent, report);
    EXPECT_TRUE(status.ok()) << status;
    if (campaign.load.samples > 0) report.check = *CheckSamples(**client, report.headline().result.samples, kSilent);
    return report;
  }
  BenchReport Run(const std::string& model, const LoadOptions& load, int layers = 1) {
    return Run(model, Campaign{.load = load}, layers);
  }

  FakeServer server_;
};

TEST_P(LoadTest, CountsExactlyTheRequestsThatWereAskedFor) {
  const BenchReport report =
      Run("copy", Rows("7", {.concurrency = 5, .warmup = milliseconds(0), .requests = 300, .samples = 20}));
  const LoadResult& result = report.headline().result;
  EXPECT_EQ(result.total.latency.count(), 300);
  EXPECT_EQ(result.total.completed_rows, 2100);
  EXPECT_EQ(result.total.statuses.at(absl::StatusCode::kOk), 300);
  EXPECT_EQ(result.samples.size(), 20u);
  EXPECT_DOUBLE_EQ(result.counts.stage_us.back(), 3.0 * 300);
  EXPECT_EQ(result.counts.batch_rows, (std::map<std::int64_t, std::int64_t>{{7, 300}}));
  ASSERT_TRUE(report.check.has_value());
  EXPECT_EQ(report.check->answers, 20);
  EXPECT_EQ(report.check->rows, 20 * 4);
  EXPECT_EQ(report.check->differing, 0);
  EXPECT_TRUE(report.Passed());
}

TEST_P(LoadTest, WindowsOfTimeEndByThemselves) {
  const BenchReport report = Run(
      "copy", {.load = Rows("uniform:1..3",
                            {.concurrency = 2, .warmup = milliseconds(20), .duration = milliseconds(60), .windows = 3}),
               .skew = 1.0});
  const LoadResult& result = report.headline().result;
  ASSERT_EQ(result.windows.size(), 3u);
  for (const Window& window : result.windows) {
    EXPECT_GT(window.latency.count(), 0);
    EXPECT_DOUBLE_EQ(window.seconds, 0.06);
  }
  EXPECT_GT(result.total.completed_rows, result.total.completed);
  EXPECT_TRUE(report.Passed());
}

TEST_P(LoadTest, RefusalsAreCountedAndPausedFor) {
  const BenchReport report =
      Run("full", Rows("1", {.concurrency = 2, .warmup = milliseconds(0), .duration = milliseconds(200)}));
  const LoadResult& result = report.headline().result;
  const std::int64_t refused = result.total.statuses.at(absl::StatusCode::kResourceExhausted);
  EXPECT_GE(refused, 2);
  EXPECT_LE(refused, 2 * 200 / 7 + 2) << "the server asked for 7 ms between attempts";
  EXPECT_FALSE(report.Passed()) << "nothing was answered";
  EXPECT_EQ(result.counts.first_error.code(), absl::StatusCode::kResourceExhausted);
}

TEST_P(LoadTest, AnOpenLoopSendsAsManyAsItsScheduleSays) {
  const BenchReport report = Run("copy", Rows("1", {.rate = 1000,
                                                    .arrivals = ArrivalKind::kConstant,
                                                    .warmup = milliseconds(50),
                                                    .duration = milliseconds(100),
                                                    .windows = 2,
                                                    .samples = 3}));
  for (const Window& window : report.headline().result.windows) EXPECT_EQ(window.operations(), 100);
  EXPECT_TRUE(report.Passed());
  EXPECT_EQ(report.check->differing, 0);
}

TEST_P(LoadTest, ADecodeStepAsksEveryLayer) {
  const BenchReport report =
      Run("copy", Rows("2", {.concurrency = 3, .warmup = milliseconds(0), .requests = 50}), /*layers=*/4);
  const Counts& counts = report.headline().result.counts;
  EXPECT_EQ(report.headline().result.total.latency.count(), 50);
  ASSERT_EQ(counts.calls.size(), 4u);
  for (const Histogram& calls : counts.calls) EXPECT_GE(calls.count(), 50);
}

INSTANTIATE_TEST_SUITE_P(Modes, LoadTest, ::testing::Values(Mode::kUnary, Mode::kStream),
                         [](const auto& info) { return info.param == Mode::kUnary ? "Unary" : "Stream"; });

using StreamLoadTest = LoadTest;
INSTANTIATE_TEST_SUITE_P(Stream, StreamLoadTest, ::testing::Values(Mode::kStream));

// The truth of a server that stops: what one in a hundred of evenly spread arrivals waits longer than.
double TrueP99(const std::vector<FakeServer::Pause>& pauses, std::chrono::nanoseconds span) {
  const auto waiting_longer = [&](double wait) {  // nanoseconds of arrivals that do
    double sum = 0;
    for (const FakeServer::Pause& pause : pauses)
      sum += std::max(0.0, static_cast<double>((pause.end - pause.begin).count()) - wait);
    return sum;
  };
  double low = 0, high = static_cast<double>(span.count());
  while (high - low > 1) {
    const double middle = (low + high) / 2;
    (waiting_longer(middle) > 0.01 * static_cast<double>(span.count()) ? low : high) = middle;
  }
  return high;
}

// A stop of seconds, so that one percent of it is more than a busy machine's own delays. (That a closed loop does not
// see stops is BookTest's.)
TEST_P(StreamLoadTest, AgainstAServerThatPausesP99IsWithinOnePercentOfTheTruth) {
  constexpr auto kSpan = FakeServer::kPausePeriod;
  const BenchReport report =
      Run("pause",
          Rows("1", {.rate = 500, .arrivals = ArrivalKind::kConstant, .warmup = milliseconds(0), .duration = kSpan}));
  const Window& window = report.headline().result.total;
  EXPECT_EQ(window.latency.count(), kSpan.count() / 2) << "one each two milliseconds";
  const double truth = TrueP99(server_.pauses(), kSpan);
  EXPECT_GT(truth, 0.9 * std::chrono::nanoseconds(FakeServer::kPauseLength).count());
  // What was sent late, for want of a processor, met a stop that was not there when it was due.
  const auto own_lag = static_cast<double>(report.headline().result.counts.send_lag.max());
  EXPECT_NEAR(static_cast<double>(window.latency.Percentile(0.99)), truth, truth * 0.01 + own_lag);
}

TEST_P(StreamLoadTest, AWrongBitUnderLoadIsFoundAndNamed) {
  const BenchReport report =
      Run("flip", Rows("4", {.concurrency = 3, .warmup = milliseconds(0), .requests = 50, .samples = 10}));
  ASSERT_TRUE(report.check.has_value());
  EXPECT_EQ(report.check->differing, 2 * 10) << "each whole request, and its last row";
  EXPECT_THAT(report.check->differences.at(0), HasSubstr("flip/0, row 3 of a request: byte 15 of the row differs"));
  EXPECT_FALSE(report.Passed());
}

TEST_P(StreamLoadTest, AnEndedStreamEndsTheRun) {
  const BenchReport report =
      Run("end", Rows("1", {.concurrency = 2, .warmup = milliseconds(0), .duration = milliseconds(5000)}));
  EXPECT_EQ(report.headline().result.broken.code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(report.headline().result.total.seconds, 4);
  EXPECT_FALSE(report.Passed());
}

TEST_P(StreamLoadTest, ASweepEndsAtAKnee) {
  const BenchReport report = Run("copy", {.load = Rows("1", {.warmup = milliseconds(0), .duration = milliseconds(30)}),
                                          .sweep = SweepPlan{.from = 1, .to = 4, .whole = true, .has_slo = true},
                                          .slo = *ParseSlo("p50=10s")});
  EXPECT_EQ(report.points.size(), 3u) << "1, 2, 4: every load holds";
  EXPECT_EQ(report.headline().load, 4);
  EXPECT_TRUE(report.Passed());
}

TEST_P(StreamLoadTest, AnUnreachableMetricsEndpointIsAnError) {
  const auto client = Client::Connect({.endpoint = server_.address()});
  ASSERT_TRUE(client.ok());
  BenchReport report{.layers = {FakeServer::LayerOf("copy")}};
  const Campaign campaign{.load = Rows("1", {}), .metrics = *ParseHttpUrl("127.0.0.1:1")};
  const absl::Status status = RunCampaign(**client, campaign, kSilent, report);
  EXPECT_EQ(status.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(status.message()), HasSubstr("http://127.0.0.1:1/metrics: nobody listens"));
}

TEST(CheckLoadTest, RowsAreHeldAgainstTheServersLimit) {
  v1::GetServerInfoResponse server;
  server.set_max_rows_per_request(64);
  EXPECT_TRUE(CheckLoad(server, Rows("64", {})).ok());
  const absl::Status status = CheckLoad(server, Rows("uniform:1..65", {}));
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr("rows: uniform:1..65 asks for 65, the server takes 1..64"));
}

TEST(ChooseLayerTest, TakesTheFirstServingOneThatFits) {
  FakeServer server;
  const auto client = Client::Connect({.endpoint = server.address()});
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(ChooseLayer(**client, {})->model(), "copy");
  EXPECT_EQ(ChooseLayer(**client, {.model = "flip", .layer = 0})->model(), "flip");
  EXPECT_EQ(ChooseLayer(**client, {.model = "loading"}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ChooseLayer(**client, {.layer = 5}).status().message()),
              HasSubstr("no serving layer */5; the server has: loading/0, copy/0"));
}

TEST(ChooseLayerTest, StepsAreServingLayersOfOneModel) {
  FakeServer server;
  const auto client = Client::Connect({.endpoint = server.address()});
  ASSERT_TRUE(client.ok());
  const auto names = [&](const std::string& model, const std::string& which) {
    std::string out;
    const auto layers = ChooseLayers(**client, model, which);
    if (!layers.ok()) return std::string(layers.status().message());
    for (const v1::Layer& layer : *layers) out += LayerName(layer) + " ";
    return out;
  };
  EXPECT_EQ(names("", "all"), "copy/0 ");
  EXPECT_EQ(names("flip", "0,0"), "flip/0 flip/0 ");
  EXPECT_THAT(names("flip", "0-1"), HasSubstr("no serving layer flip/1"));
  EXPECT_THAT(names("loading", "all"), HasSubstr("no serving layer of model loading"));
  for (const char* wrong : {"", "x", "2-1", "1-", "0-99999999"})
    EXPECT_THAT(names("", wrong), HasSubstr("layers: ")) << wrong;
}

}  // namespace
}  // namespace expertd::client
