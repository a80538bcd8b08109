#include <limits>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/program/bench/report.h"

namespace expertd::client {
namespace {

std::string CsvLine(const Point& point, absl::string_view window, const Window& measured) {
  std::string line = absl::StrFormat("%g,%s,%.3f,%d,%d,%.3f,%.3f", point.load, window, measured.seconds,
                                     measured.operations(), measured.operations() - measured.latency.count(),
                                     measured.CompletedPerSecond(), measured.RowsPerSecond());
  for (const Histogram* histogram : {&measured.latency, &measured.service}) {
    for (const auto& [name, fraction] : kPercentiles) {
      absl::StrAppendFormat(&line, ",%.1f", static_cast<double>(histogram->Percentile(fraction)) / 1000);
    }
  }
  return line + "\n";
}

}  // namespace

std::string FormatCsv(const BenchReport& report) {
  std::string out = "load,window,seconds,operations,failed,answered_per_second,rows_per_second";
  for (const char* kind : {"latency", "service"}) {
    for (const auto& [name, fraction] : kPercentiles) absl::StrAppend(&out, ",", kind, "_", name, "_us");
  }
  out += "\n";
  for (const Point& point : report.points) {
    out += CsvLine(point, "all", point.result.total);
    for (std::size_t i = 0; i < point.result.windows.size(); ++i) {
      out += CsvLine(point, absl::StrCat(i), point.result.windows[i]);
    }
  }
  return out;
}

std::string FormatHistogram(const BenchReport& report) {
  const Histogram& latency = report.headline().result.total.latency;
  const auto count = static_cast<double>(latency.count());
  std::string out = "       Value     Percentile TotalCount 1/(1-Percentile)\n\n";
  std::int64_t seen = 0;
  latency.ForEachBucket([&](std::int64_t most, std::int64_t samples) {
    seen += samples;
    const double percentile = static_cast<double>(seen) / count;
    absl::StrAppendFormat(&out, "%12.3f %14.12f %10d", static_cast<double>(most) / 1000, percentile, seen);
    if (seen < latency.count()) absl::StrAppendFormat(&out, " %14.2f", 1 / (1 - percentile));
    out += "\n";
  });
  absl::StrAppendFormat(&out, "#[Mean    = %12.3f]\n#[Max     = %12.3f, Total count    = %12d]\n",
                        latency.mean() / 1000, static_cast<double>(latency.max()) / 1000, latency.count());
  return out;
}

}  // namespace expertd::client
