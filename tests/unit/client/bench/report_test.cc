// The forms of a report, the charts in it, and the server's side of it.
#include "client/cpp/program/bench/report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "absl/strings/str_split.h"
#include "client/cpp/program/bench/chart.h"
#include "client/cpp/program/bench/http_get.h"

namespace expertd::client {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

Point SomePoint(double load, int windows) {
  Point point{.load = load};
  LoadResult& result = point.result;
  result.counts.calls.resize(1);
  for (int i = 0; i < windows; ++i) {
    Window window{.seconds = 1, .completed = 100, .completed_rows = 300};
    for (int j = 1; j <= 100; ++j) {
      window.latency.Add(j * 10'000 * (i + 1));
      window.service.Add(j * 1000);
      result.counts.calls[0].Add(5000);
    }
    window.statuses = {{absl::StatusCode::kOk, 100}, {absl::StatusCode::kResourceExhausted, 1}};
    result.windows.push_back(window);
    result.total.Merge(window);
  }
  result.counts.answers = 100 * windows;
  result.counts.batch_rows = {{1, 50 * windows}, {3, 25 * windows}, {4, 25 * windows}};
  result.counts.stage_us.back() = 2.0 * 100 * windows;
  return point;
}

BenchReport SomeReport(bool swept) {
  BenchReport report{.endpoint = "host:1", .date = "2026-11-26", .swept = swept};
  report.options.rate = 100;
  report.options.rows = *RowCounts::Parse("3");
  v1::Layer layer;
  layer.set_model("<b>&\"evil\"</script>");
  report.layers = {layer};
  for (const double load : {100.0, 200.0}) report.points.push_back(SomePoint(load, 2));
  if (!swept) return report;
  report.slo = *ParseSlo("p99=1ms");
  report.points[1].violation = "p99 is 2 ms, more than 1 ms";
  report.knee = 0;
  return report;
}

TEST(ReportTest, JsonHoldsTheNumbers) {
  const auto json = nlohmann::json::parse(FormatJson(SomeReport(true)));
  EXPECT_EQ(json["requests"], 200);
  EXPECT_EQ(json["offered_per_second"], 100);
  EXPECT_EQ(json["statuses"]["OK"], 200);
  EXPECT_EQ(json["rows_per_second"], 300);
  EXPECT_NEAR(json["latency_us"]["max"].get<double>(), 2000, 8);
  EXPECT_NEAR(json["service_us"]["max"].get<double>(), 100, 1);
  EXPECT_NEAR(json["windows_estimate"]["p99_us"]["mean"].get<double>(), (990 + 1980) / 2.0, 8);
  EXPECT_GT(json["windows_estimate"]["p99_us"]["confidence_95"].get<double>(), 1000);
  EXPECT_EQ(json["stages_us_mean"]["total"], 2);
  EXPECT_EQ(json["wire_and_client_us_mean"], 3);
  EXPECT_EQ(json["answers_by_batch_rows"]["3"], 50);
  EXPECT_EQ(json["points"].size(), 2u);
  EXPECT_EQ(json["points"][1]["violation"], "p99 is 2 ms, more than 1 ms");
  EXPECT_EQ(json["knee"], 0);
  EXPECT_EQ(json["passed"], true);
}

TEST(ReportTest, AnOpenLoopShowsServiceTimeBesideLatency) {
  BenchReport report = SomeReport(false);
  EXPECT_THAT(FormatTable(report),
              AllOf(HasSubstr("\nservice "), HasSubstr("Poisson arrivals at 200.0 /s"), HasSubstr("+-")));
  report.options.rate = 0;
  EXPECT_THAT(FormatTable(report), AllOf(Not(HasSubstr("\nservice ")), HasSubstr("200 in progress")));
}

TEST(ReportTest, ASweepsTableMarksTheKneeAndSaysWhyOthersFail) {
  EXPECT_THAT(FormatTable(SomeReport(true)),
              AllOf(HasSubstr("<- knee"), HasSubstr("more than 1 ms"), HasSubstr("p99=1ms")));
  BenchReport none = SomeReport(true);
  none.knee.reset();
  EXPECT_THAT(FormatTable(none), HasSubstr("no load that was tried holds"));
  EXPECT_FALSE(none.Passed());
}

TEST(ReportTest, CsvHasALineForEachLoadAndWindow) {
  const std::string csv = FormatCsv(SomeReport(true));
  const std::vector<std::string> lines = absl::StrSplit(csv, '\n', absl::SkipEmpty());
  ASSERT_EQ(lines.size(), 1u + 2 * 3);
  const auto columns = [](const std::string& line) { return std::count(line.begin(), line.end(), ','); };
  for (const std::string& line : lines) EXPECT_EQ(columns(line), columns(lines[0])) << line;
  EXPECT_THAT(lines[1], HasSubstr("100,all,2.000,202,2,"));
  EXPECT_THAT(lines[5], HasSubstr("200,0,1.000,101,1,"));
}

TEST(ReportTest, TheHistogramEndsWithEverySample) {
  const std::string text = FormatHistogram(SomeReport(false));
  EXPECT_THAT(text, HasSubstr(" 1.000000000000        200\n#[Mean"));
  EXPECT_THAT(text, HasSubstr("Total count    =          200]"));
}

TEST(ReportTest, ThePageIsWholeAndEscapesWhatTheServerSays) {
  const std::string page = FormatHtml(SomeReport(true));
  for (const char* text :
       {"Latency against throughput", "Percentiles", "Where a request", "Batches that answers came from",
        "What was offered", "Windows", "&lt;b&gt;&amp;&quot;evil&quot;"}) {
    EXPECT_THAT(page, HasSubstr(text)) << text;
  }
  EXPECT_THAT(page, Not(HasSubstr("<b>&")));
  for (const char* outside : {"http://", "https://", "src=", "href=", "@import", "url("}) {
    EXPECT_THAT(page, Not(HasSubstr(outside))) << outside;
  }
  const auto begin = page.find("id=\"report\">") + 12;
  const auto json = nlohmann::json::parse(page.substr(begin, page.find("</script>", begin) - begin));
  EXPECT_EQ(json["layer"]["name"], "<b>&\"evil\"</script>/0");
  EXPECT_THAT(FormatHtml({.layers = {v1::Layer()}, .points = {SomePoint(1, 1)}}),
              HasSubstr("A closed loop sends nothing"));
}

TEST(ReportTest, NothingAnsweredIsAReportToo) {
  BenchReport report{.layers = {v1::Layer()}, .points = {Point{.load = 1}}};
  report.points[0].result.windows.resize(1);
  report.points[0].result.counts.calls.resize(1);
  EXPECT_THAT(FormatHtml(report), HasSubstr("nothing was answered"));
  EXPECT_FALSE(FormatTable(report).empty());
  EXPECT_FALSE(nlohmann::json::parse(FormatJson(report))["passed"].get<bool>());
  EXPECT_FALSE(FormatCsv(report).empty());
  EXPECT_FALSE(FormatHistogram(report).empty());
}

std::string Labels(const std::vector<Tick>& ticks) {
  std::string out;
  for (const Tick& tick : ticks) out += tick.label + " ";
  return out;
}

TEST(ChartTest, TicksAreRound) {
  EXPECT_EQ(Labels(RoundTicks({}, 0, 930, 6)), "0 200 400 600 800 ");
  EXPECT_EQ(Labels(RoundTicks({}, 0, 1, 5)), "0 0.2 0.4 0.6 0.8 1 ");
  EXPECT_EQ(Labels(RoundTicks({.logarithmic = true, .micros = true}, 300, 21'000, 6)),
            "500 us 1 ms 2 ms 5 ms 10 ms 20 ms ");
  EXPECT_EQ(Labels(RoundTicks({.logarithmic = true}, 1, 1e5, 6)), "1 10 100 1k 10k 100k ");
}

TEST(ChartTest, OnePointAndZeroesCanBeDrawn) {
  const std::string one =
      RenderLines({.y = {.logarithmic = true}, .lines = {{.name = "a", .points = {{5, 7}, {6, 0}}}}});
  EXPECT_THAT(one, AllOf(HasSubstr("<circle"), Not(HasSubstr("nan")), Not(HasSubstr("inf"))));
  EXPECT_THAT(RenderLines({.lines = {{.name = "a"}}}), HasSubstr("nothing was answered"));
  EXPECT_THAT(RenderBars({.bars = {{"x", 0}}}), HasSubstr("nothing was answered"));
  EXPECT_THAT(RenderStacks({.parts = {"p"}, .bars = {{"x", {2}}}}), HasSubstr("data-tip=\"x: p 2 us\""));
}

constexpr char kBefore[] = R"(# HELP expertd_stage_seconds x
expertd_stage_seconds_count{stage="gemm"} 10
expertd_stage_seconds_sum{stage="gemm"} 1.0
expertd_batch_rows_bucket{layer="m/0",le="1"} 5
expertd_batch_rows_bucket{layer="m/0",le="16"} 5
expertd_batch_rows_bucket{layer="m/0",le="+Inf"} 5
expertd_batch_rows_count{layer="m/0"} 5
expertd_batch_rows_sum{layer="m/0"} 5
expertd_rejected_total{reason="busy"} 1
)";
constexpr char kAfter[] = R"(expertd_stage_seconds_count{stage="gemm"} 30
expertd_stage_seconds_sum{stage="gemm"} 1.5
expertd_stage_seconds_count{stage="write"} 2
expertd_stage_seconds_sum{stage="write"} 0.5
expertd_batch_rows_bucket{layer="m/0",le="1"} 6
expertd_batch_rows_bucket{layer="m/0",le="16"} 9
expertd_batch_rows_bucket{layer="m/0",le="+Inf"} 9
expertd_batch_rows_bucket{layer="m/1",le="16"} 2
expertd_batch_rows_count{layer="m/0"} 9
expertd_batch_rows_sum{layer="m/0"} 45 1700000000000
expertd_batch_rows_count{layer="m/1"} 2
expertd_batch_rows_sum{layer="m/1"} 20
expertd_rejected_total{reason="busy"} 4
expertd_rejected_total{reason="deadline"} 0
nonsense
)";

TEST(ServerMetricsTest, ThePeriodIsTheDifferenceOfTwoScrapes) {
  const ServerPeriod period = Difference(ParseMetrics(kBefore), ParseMetrics(kAfter));
  ASSERT_EQ(period.stages.size(), 2u);
  EXPECT_EQ(period.stages[0].name, "gemm");
  EXPECT_NEAR(period.stages[0].mean_us, 25'000, 1e-6);
  EXPECT_EQ(period.stages[1].name, "write");
  EXPECT_NEAR(period.stages[1].mean_us, 250'000, 1e-6);
  EXPECT_EQ(period.batches, 6);
  EXPECT_EQ(period.batch_rows, 60);
  ASSERT_EQ(period.batches_by_rows.size(), 3u);
  EXPECT_EQ(period.batches_by_rows[0].count, 1);
  EXPECT_EQ(period.batches_by_rows[1].count, 5);
  EXPECT_EQ(period.batches_by_rows[2].most, INFINITY);
  EXPECT_EQ(period.refused, (std::map<std::string, double>{{"busy", 3}}));
}

TEST(HttpUrlTest, Parses) {
  const auto all = ParseHttpUrl("http://[::1]:9464/other");
  ASSERT_TRUE(all.ok()) << all.status();
  EXPECT_EQ(all->host, "::1");
  EXPECT_EQ(all->port, "9464");
  EXPECT_EQ(all->path, "/other");
  EXPECT_EQ(ParseHttpUrl("localhost:80")->path, "/metrics");
  EXPECT_EQ(ParseHttpUrl("host")->port, "80");
  for (const char* wrong : {"", ":80", "https://host:1", "host:", "host:http", "http://"}) {
    EXPECT_EQ(ParseHttpUrl(wrong).status().code(), absl::StatusCode::kInvalidArgument) << wrong;
  }
}

}  // namespace
}  // namespace expertd::client
