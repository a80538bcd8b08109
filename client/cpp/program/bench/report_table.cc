#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/program/bench/report.h"
#include "client/cpp/program/layers.h"

namespace expertd::client {
namespace {

std::string Line(absl::string_view title, absl::string_view text) { return absl::StrFormat("%-12s%s\n", title, text); }

std::string StatusText(const absl::Status& status) {
  return status.ToString(absl::StatusToStringMode::kWithNoExtraData);
}

std::string LayersText(const BenchReport& report) {
  const v1::Layer& first = report.layers.front();
  if (report.layers.size() == 1) return absl::StrCat(LayerName(first), ": ", LayerSizes(first));
  return absl::StrCat(LayerName(first), " to ", LayerName(report.layers.back()), ", a step is ", report.layers.size(),
                      " layers in order: ", LayerSizes(first));
}

std::string Head(const BenchReport& report) {
  const LoadOptions& options = report.options;
  std::string out = Line(
      "server", absl::StrCat(report.endpoint, ", ", report.server.device(), ", expertd ", report.server.version()));
  out += Line("layer", LayersText(report));
  out += Line("load", absl::StrFormat("%s, %d connections, %s, %s rows each, %s-routed", ModeName(options.mode),
                                      report.connections, LoadText(report, report.headline()), options.rows.text(),
                                      report.routing == "server" ? "server" : "pre"));
  if (report.slo.has_value()) out += Line("objective", report.slo->text);
  return out;
}

std::string Percentiles(absl::string_view title, double mean,
                        const std::array<double, kPercentiles.size()>& percentiles) {
  std::string line = absl::StrFormat("%-12s%10.1f", title, mean);
  for (const double value : percentiles) absl::StrAppendFormat(&line, "%11.1f", value);
  absl::StrAppend(&line, "\n");
  return line;
}

std::string LatencyTable(const BenchReport& report, const Summary& summary) {
  std::string head = absl::StrFormat("%-12s%10s", "us", "mean");
  for (const auto& [name, fraction] : kPercentiles) absl::StrAppendFormat(&head, "%11s", name);
  std::string out = absl::StrCat(head, "\n", Percentiles("latency", summary.latency_mean_us, summary.latency_us));
  if (!report.options.open_loop()) return out;
  out += Percentiles("service", summary.service_mean_us, summary.service_us);
  absl::StrAppend(&out, "latency counts from when an operation was due, service from when it was sent\n");
  return out;
}

std::string StageTable(absl::string_view title, const std::vector<std::pair<std::string, double>>& stages) {
  std::string head = absl::StrFormat("%-12s", title), values = absl::StrFormat("%-12s", "");
  for (const auto& [name, us] : stages) {
    const int width = std::max(10, static_cast<int>(name.size()) + 2);
    absl::StrAppendFormat(&head, "%*s", width, name);
    absl::StrAppendFormat(&values, "%*.1f", width, us);
  }
  return absl::StrCat(head, "\n", values, "\n");
}

std::string Stages(const Point& point, const Summary& summary) {
  std::vector<std::pair<std::string, double>> stages;
  for (std::size_t i = 0; i < kStages.size(); ++i) stages.emplace_back(kStages[i], summary.stage_us[i]);
  stages.emplace_back("wire and client", summary.wire_us);
  std::string out = StageTable("stages us", stages);
  if (!point.server.has_value()) return out;
  const ServerPeriod& server = *point.server;
  stages.clear();
  for (const ServerPeriod::Stage& stage : server.stages) stages.emplace_back(stage.name, stage.mean_us);
  absl::StrAppend(&out, "\n", StageTable("metrics us", stages));
  absl::StrAppendFormat(&out, "%-12s%.0f batches, %.1f rows each", "", server.batches,
                        server.batches > 0 ? server.batch_rows / server.batches : 0);
  for (const auto& [reason, count] : server.refused) absl::StrAppendFormat(&out, ", %.0f refused (%s)", count, reason);
  absl::StrAppend(&out, " (all callers of the server)\n");
  return out;
}

std::string CheckText(const CheckResult& check) {
  const std::string compared =
      absl::StrCat(check.answers, " answers sent again alone, and ", check.rows, " of their rows one by one: ");
  std::string out = absl::StrCat(
      "\n", Line("check",
                 absl::StrCat(compared, check.differing == 0 ? "all bits are equal"
                                                             : absl::StrCat(check.differing, " comparisons DIFFER"))));
  for (const std::string& difference : check.differences) absl::StrAppend(&out, "  ", difference, "\n");
  return out;
}

std::string SweepTable(const BenchReport& report) {
  std::string out =
      absl::StrFormat("%12s%12s%12s%11s%11s%11s%11s  %s\n", report.options.open_loop() ? "offered/s" : "in flight",
                      "answered/s", "rows/s", "p50 us", "p99 us", "p99.9 us", "batch rows", "");
  for (std::size_t i = 0; i < report.points.size(); ++i) {
    const Point& point = report.points[i];
    const Summary s = Summarise(point);
    absl::StrAppendFormat(&out, "%12.1f%12.1f%12.1f%11.1f%11.1f%11.1f%11.1f  %s\n", point.load, s.per_second.mean,
                          s.rows_per_second.mean, s.latency_us[0], s.latency_us[2], s.latency_us[3], s.batch_rows,
                          report.knee == i ? "<- knee" : point.violation.value_or(""));
  }
  if (!report.knee.has_value()) out += "no load that was tried holds: start lower\n";
  absl::StrAppend(&out, "\n");
  return out;
}

std::string PointText(const BenchReport& report, const Point& point) {
  const LoadResult& result = point.result;
  const Summary summary = Summarise(point);
  std::string out;
  out += Line("requests", absl::StrFormat("%d, %s /s", result.total.latency.count(), EstimateText(summary.per_second)));
  out += Line("rows", absl::StrFormat("%d, %s /s", result.total.completed_rows, EstimateText(summary.rows_per_second)));
  std::string statuses;
  for (const auto& [code, count] : result.total.statuses)
    absl::StrAppend(&statuses, absl::StatusCodeToString(code), " ", count, "  ");
  out += Line("status", statuses);
  out += Line("batch",
              absl::StrFormat("%.1f rows of %.1f requests on average", summary.batch_rows, summary.batch_requests));
  out += Line("windows",
              absl::StrFormat("%d of %.1f s, p99 %s us%s", result.windows.size(), result.windows.front().seconds,
                              EstimateText(summary.p99_us), result.windows.size() > 1 ? " (95 % confidence)" : ""));
  absl::StrAppend(&out, "\n", LatencyTable(report, summary), "\n", Stages(point, summary));
  for (const std::string& remark : Remarks(point)) out += Line("note", remark);
  if (!result.counts.first_error.ok()) out += Line("first error", StatusText(result.counts.first_error));
  if (!result.broken.ok()) out += Line("stream ended", StatusText(result.broken));
  return out;
}

}  // namespace

std::string FormatTable(const BenchReport& report) {
  std::string out = Head(report);
  if (report.swept) absl::StrAppend(&out, "\n", SweepTable(report));
  out += PointText(report, report.headline());
  if (report.check.has_value()) out += CheckText(*report.check);
  return out;
}

}  // namespace expertd::client
