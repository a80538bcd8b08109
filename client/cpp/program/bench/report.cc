#include "client/cpp/program/bench/report.h"

#include <cmath>

#include "absl/strings/str_format.h"

namespace expertd::client {
namespace {

constexpr double kMicro = 1e-3;  // of a nanosecond count

std::array<double, kPercentiles.size()> PercentilesOf(const Histogram& histogram) {
  std::array<double, kPercentiles.size()> out{};
  for (std::size_t i = 0; i < out.size(); ++i) {
    const double fraction = kPercentiles[i].second;
    out[i] = static_cast<double>(fraction < 1 ? histogram.Percentile(fraction) : histogram.max()) * kMicro;
  }
  return out;
}

template <class Value>
Estimate OverWindows(const LoadResult& result, Value value) {
  std::vector<double> values;
  for (const Window& window : result.windows) values.push_back(value(window));
  return EstimateOf(values);
}

}  // namespace

bool BenchReport::Passed() const {
  if (swept && !knee.has_value()) return false;
  const LoadResult& result = headline().result;
  if (!result.broken.ok() || result.total.latency.count() == 0) return false;
  for (const auto& [code, count] : result.total.statuses) {
    if (code != absl::StatusCode::kOk && code != absl::StatusCode::kResourceExhausted) return false;
  }
  return !check.has_value() || check->differing == 0;
}

Summary Summarise(const Point& point) {
  const LoadResult& result = point.result;
  const Counts& counts = result.counts;
  const auto answers = static_cast<double>(std::max<std::int64_t>(1, counts.answers));
  Summary summary{.latency_us = PercentilesOf(result.total.latency),
                  .service_us = PercentilesOf(result.total.service),
                  .latency_mean_us = result.total.latency.mean() * kMicro,
                  .service_mean_us = result.total.service.mean() * kMicro,
                  .failed_share = result.total.FailedShare(),
                  .batch_rows = counts.MeanBatchRows(),
                  .batch_requests = counts.batch_requests / answers};
  summary.p99_us =
      OverWindows(result, [](const Window& w) { return static_cast<double>(w.latency.Percentile(0.99)) * kMicro; });
  summary.per_second = OverWindows(result, [](const Window& w) { return w.CompletedPerSecond(); });
  summary.rows_per_second = OverWindows(result, [](const Window& w) { return w.RowsPerSecond(); });
  for (std::size_t i = 0; i < kStages.size(); ++i) summary.stage_us[i] = counts.stage_us[i] / answers;
  double call_us = 0;
  for (const Histogram& calls : counts.calls) call_us += calls.mean() * static_cast<double>(calls.count()) * kMicro;
  summary.wire_us = call_us / answers - summary.stage_us.back();
  return summary;
}

std::vector<std::string> Remarks(const Point& point) {
  const LoadResult& result = point.result;
  return SaturationSigns(result.own,
                         {.operations = result.total.operations(),
                          .held_back = result.counts.held_back,
                          .lag_p99_us = static_cast<double>(result.counts.send_lag.Percentile(0.99)) * kMicro,
                          .latency_p50_us = static_cast<double>(result.total.latency.Percentile(0.5)) * kMicro});
}

std::string EstimateText(const Estimate& estimate) {
  if (std::isnan(estimate.half_width)) return absl::StrFormat("%.1f", estimate.mean);
  return absl::StrFormat("%.1f +- %.1f", estimate.mean, estimate.half_width);
}

const char* ModeName(Mode mode) { return mode == Mode::kStream ? "stream" : "unary"; }

const char* ArrivalName(ArrivalKind kind) {
  switch (kind) {
    case ArrivalKind::kPoisson:
      return "Poisson";
    case ArrivalKind::kConstant:
      return "constant";
    case ArrivalKind::kTrace:
      break;
  }
  return "recorded";
}

std::string LoadText(const BenchReport& report, const Point& point) {
  if (!report.options.open_loop()) return absl::StrFormat("%.0f in progress", point.load);
  if (point.load == 0) return "arrivals as recorded";
  return absl::StrFormat("%s arrivals at %.1f /s", ArrivalName(report.options.arrivals), point.load);
}

}  // namespace expertd::client
