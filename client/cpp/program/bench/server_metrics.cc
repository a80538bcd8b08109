#include "client/cpp/program/bench/server_metrics.h"

#include <array>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace expertd::client {
namespace {

constexpr std::array<const char*, 8> kServerStages = {"decode", "queue",   "stage_in",  "route",
                                                      "gemm",   "combine", "stage_out", "write"};

// The value of a label in `le="16",layer="m/0"`; empty when it is not there.
std::string Label(absl::string_view series, absl::string_view name) {
  const std::string start = absl::StrCat(name, "=\"");
  for (std::size_t at = series.find(start); at != absl::string_view::npos; at = series.find(start, at + 1)) {
    if (at > 0 && series[at - 1] != '{' && series[at - 1] != ',') continue;  // the end of a longer name
    const std::size_t begin = at + start.size();
    return std::string(series.substr(begin, series.find('"', begin) - begin));
  }
  return "";
}

// Growth of every series of a family, summed by one of its labels.
std::map<std::string, double> Growth(const Scrape& before, const Scrape& after, absl::string_view family,
                                     absl::string_view label) {
  std::map<std::string, double> sums;
  const std::string start = absl::StrCat(family, "{");
  for (auto at = after.lower_bound(family); at != after.end() && absl::StartsWith(at->first, family); ++at) {
    if (at->first != family && !absl::StartsWith(at->first, start)) continue;
    const auto old = before.find(at->first);
    sums[Label(at->first, label)] += at->second - (old == before.end() ? 0 : old->second);
  }
  return sums;
}

double Total(const Scrape& before, const Scrape& after, absl::string_view family) {
  double sum = 0;
  for (const auto& [label, value] : Growth(before, after, family, "")) sum += value;
  return sum;
}

}  // namespace

Scrape ParseMetrics(absl::string_view text) {
  Scrape scrape;
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    if (line.empty() || line[0] == '#') continue;
    const auto brace = line.rfind('}');
    const auto end = line.find(' ', brace == absl::string_view::npos ? 0 : brace);
    if (end == absl::string_view::npos) continue;
    const std::vector<absl::string_view> fields = absl::StrSplit(line.substr(end), ' ', absl::SkipEmpty());
    double value = 0;
    if (!fields.empty() && absl::SimpleAtod(fields[0], &value)) scrape.emplace(line.substr(0, end), value);
  }
  return scrape;
}

ServerPeriod Difference(const Scrape& before, const Scrape& after) {
  ServerPeriod period;
  const auto seconds = Growth(before, after, "expertd_stage_seconds_sum", "stage");
  const auto counts = Growth(before, after, "expertd_stage_seconds_count", "stage");
  for (const char* stage : kServerStages) {
    const auto sum = seconds.find(stage);
    const auto count = counts.find(stage);
    if (sum == seconds.end() || count == counts.end()) continue;
    const double mean = count->second > 0 ? sum->second / count->second * 1e6 : 0;
    period.stages.push_back({stage, mean, count->second});
  }
  period.batches = Total(before, after, "expertd_batch_rows_count");
  period.batch_rows = Total(before, after, "expertd_batch_rows_sum");
  std::map<double, double> cumulative;
  for (const auto& [bound, count] : Growth(before, after, "expertd_batch_rows_bucket", "le")) {
    double most = 0;
    if (absl::SimpleAtod(bound, &most)) cumulative[most] = count;
  }
  double below = 0;
  for (const auto& [most, count] : cumulative) {
    period.batches_by_rows.push_back({most, count - below});
    below = count;
  }
  for (const auto& [reason, count] : Growth(before, after, "expertd_rejected_total", "reason")) {
    if (count > 0) period.refused[reason] = count;
  }
  return period;
}

}  // namespace expertd::client
