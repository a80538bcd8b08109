// The closed loop and the check after it, against a server that is right, wrong, full or gone.
#include "client/cpp/program/check.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "client/cpp/program/layers.h"
#include "client/cpp/program/report.h"
#include "tests/unit/client/fake_server.h"

namespace expertd::client {
namespace {

using std::chrono::milliseconds;

class LoadTest : public ::testing::TestWithParam<Mode> {
 protected:
  BenchReport Run(const std::string& model, LoadOptions options) {
    options.mode = GetParam();
    const auto client = Client::Connect({.endpoint = server_.address(), .connections = 2});
    EXPECT_TRUE(client.ok());
    BenchReport report{.layer = FakeServer::LayerOf(model), .connections = 2, .options = options};
    auto load = RunLoad(**client, report.layer, options);
    EXPECT_TRUE(load.ok()) << load.status();
    report.load = *std::move(load);
    if (options.samples > 0) report.check = *CheckSamples(**client, report.load);
    return report;
  }

  FakeServer server_;
};

TEST_P(LoadTest, CountsExactlyTheRequestsThatWereAskedFor) {
  const BenchReport report =
      Run("copy", {.concurrency = 5, .rows = 7, .warmup = milliseconds(0), .requests = 300, .samples = 20});
  EXPECT_EQ(report.load.latency.count(), 300);
  EXPECT_EQ(report.load.statuses.at(absl::StatusCode::kOk), 300);
  EXPECT_EQ(report.load.samples.size(), 20u);
  EXPECT_DOUBLE_EQ(report.load.stage_us.back(), 3.0 * 300);
  EXPECT_DOUBLE_EQ(report.load.batch_rows, 7.0 * 300);
  ASSERT_TRUE(report.check.has_value());
  EXPECT_EQ(report.check->answers, 20);
  EXPECT_EQ(report.check->rows, 20 * 4);
  EXPECT_EQ(report.check->differing, 0);
  EXPECT_TRUE(report.Passed());
}

TEST_P(LoadTest, AWindowOfTimeEndsByItself) {
  const BenchReport report =
      Run("copy",
          {.concurrency = 2, .rows = 1, .pre_routed = true, .warmup = milliseconds(20), .duration = milliseconds(100)});
  EXPECT_GT(report.load.latency.count(), 0);
  EXPECT_GE(report.load.seconds, 0.1);
  EXPECT_TRUE(report.Passed());
}

TEST_P(LoadTest, RefusalsAreCountedAndPausedFor) {
  const BenchReport report =
      Run("full", {.concurrency = 2, .rows = 1, .warmup = milliseconds(0), .duration = milliseconds(200)});
  const std::int64_t refused = report.load.statuses.at(absl::StatusCode::kResourceExhausted);
  EXPECT_GE(refused, 2);
  EXPECT_LE(refused, 2 * 200 / 7 + 2) << "the server asked for 7 ms between attempts";
  EXPECT_FALSE(report.Passed()) << "nothing was answered";
  EXPECT_EQ(report.load.first_error.code(), absl::StatusCode::kResourceExhausted);
}

INSTANTIATE_TEST_SUITE_P(Modes, LoadTest, ::testing::Values(Mode::kUnary, Mode::kStream),
                         [](const auto& info) { return info.param == Mode::kUnary ? "Unary" : "Stream"; });

using StreamLoadTest = LoadTest;
INSTANTIATE_TEST_SUITE_P(Stream, StreamLoadTest, ::testing::Values(Mode::kStream));

TEST_P(StreamLoadTest, AWrongBitUnderLoadIsFoundAndNamed) {
  const BenchReport report =
      Run("flip", {.concurrency = 3, .rows = 4, .warmup = milliseconds(0), .requests = 50, .samples = 10});
  ASSERT_TRUE(report.check.has_value());
  EXPECT_EQ(report.check->differing, 2 * 10) << "each whole request, and its last row";
  EXPECT_THAT(report.check->differences.at(0), ::testing::HasSubstr("row 3: byte 15 of the row differs"));
  EXPECT_FALSE(report.Passed());
  EXPECT_THAT(FormatTable(report), ::testing::HasSubstr("comparisons DIFFER"));
}

TEST_P(StreamLoadTest, AnEndedStreamEndsTheRun) {
  const BenchReport report =
      Run("end", {.concurrency = 2, .rows = 1, .warmup = milliseconds(0), .duration = milliseconds(5000)});
  EXPECT_EQ(report.load.broken.code(), absl::StatusCode::kUnavailable);
  EXPECT_LT(report.load.seconds, 4);
  EXPECT_FALSE(report.Passed());
}

TEST_P(StreamLoadTest, JsonHoldsWhatTheTableShows) {
  const BenchReport report =
      Run("copy", {.concurrency = 1, .rows = 2, .warmup = milliseconds(0), .requests = 10, .samples = 2});
  const auto json = nlohmann::json::parse(FormatJson(report));
  EXPECT_EQ(json["requests"], 10);
  EXPECT_EQ(json["statuses"]["OK"], 10);
  EXPECT_EQ(json["stages_us_mean"]["gemm"], 2);
  EXPECT_EQ(json["check"]["differing"], 0);
  EXPECT_GT(json["latency_us"]["p99.9"].get<double>(), 0);
  EXPECT_EQ(json["passed"], true);
}

TEST(LoadOptionsTest, RowsAreHeldAgainstTheServersLimit) {
  FakeServer server;
  const auto client = Client::Connect({.endpoint = server.address()});
  ASSERT_TRUE(client.ok());
  for (const std::int64_t rows : {std::int64_t{0}, FakeServer::kMaxRows + 1}) {
    const auto load = RunLoad(**client, FakeServer::LayerOf("copy"), {.rows = rows});
    EXPECT_EQ(load.status().code(), absl::StatusCode::kInvalidArgument) << rows;
  }
}

TEST(ChooseLayerTest, TakesTheFirstServingOneThatFits) {
  FakeServer server;
  const auto client = Client::Connect({.endpoint = server.address()});
  ASSERT_TRUE(client.ok());
  EXPECT_EQ(ChooseLayer(**client, {})->model(), "copy");
  EXPECT_EQ(ChooseLayer(**client, {.model = "flip", .layer = 0})->model(), "flip");
  EXPECT_EQ(ChooseLayer(**client, {.model = "loading"}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(ChooseLayer(**client, {.layer = 5}).status().message()),
              ::testing::HasSubstr("no serving layer */5; the server has: loading/0, copy/0"));
}

}  // namespace
}  // namespace expertd::client
