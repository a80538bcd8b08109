#include "server/scheduler/trace.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace expertd {
namespace {

using std::chrono::microseconds;

struct Column {
  const char* name;
  std::int64_t min, max;
  void (*set)(TraceRequest& request, std::int64_t value);
};

constexpr std::int64_t kYearUs = 365LL * 86400 * 1'000'000;

// The columns of whole numbers.
constexpr Column kColumns[] = {
    {"rows", 1, 1 << 20, [](TraceRequest& r, std::int64_t v) { r.rows = v; }},
    {"layer", 0, 1 << 20, [](TraceRequest& r, std::int64_t v) { r.layer = v; }},
    {"priority", 0, 9, [](TraceRequest& r, std::int64_t v) { r.priority = static_cast<int>(v); }},
    {"timeout_us", 1, kYearUs, [](TraceRequest& r, std::int64_t v) { r.timeout = microseconds(v); }},
};
constexpr char kSecondsColumn[] = "seconds", kTenantColumn[] = "tenant";

std::vector<std::string> Cells(const std::string& line) {
  std::vector<std::string> cells;
  for (const absl::string_view cell : absl::StrSplit(line, ',')) cells.emplace_back(absl::StripAsciiWhitespace(cell));
  return cells;
}

absl::Status CheckHeader(const std::vector<std::string>& header) {
  for (std::size_t i = 0; i < header.size(); ++i) {
    const bool known = header[i] == kSecondsColumn || header[i] == kTenantColumn ||
                       std::any_of(std::begin(kColumns), std::end(kColumns),
                                   [&](const Column& column) { return header[i] == column.name; });
    if (!known) return absl::InvalidArgumentError(absl::StrCat("'", header[i], "' is no column of a trace"));
    if (std::count(header.begin(), header.end(), header[i]) > 1) {
      return absl::InvalidArgumentError(absl::StrCat(header[i], " is named twice"));
    }
  }
  for (const char* needed : {kSecondsColumn, "rows"}) {
    if (std::find(header.begin(), header.end(), needed) == header.end()) {
      return absl::InvalidArgumentError(absl::StrCat("the column ", needed, " is missing"));
    }
  }
  return absl::OkStatus();
}

absl::Status SetCell(const std::string& name, const std::string& cell, TraceRequest& request) {
  if (name == kTenantColumn) {
    request.tenant = cell;
    return absl::OkStatus();
  }
  if (name == kSecondsColumn) {
    double seconds = 0;
    if (!absl::SimpleAtod(cell, &seconds) || !(seconds >= 0 && seconds * 1e6 <= kYearUs)) {
      return absl::InvalidArgumentError(absl::StrCat(name, "='", cell, "' is not a time within a year"));
    }
    request.at = microseconds(std::llround(seconds * 1e6));
    return absl::OkStatus();
  }
  const auto column =
      std::find_if(std::begin(kColumns), std::end(kColumns), [&](const Column& c) { return name == c.name; });
  std::int64_t value = 0;
  if (!absl::SimpleAtoi(cell, &value) || value < column->min || value > column->max) {
    return absl::InvalidArgumentError(
        absl::StrCat(name, "='", cell, "' is not a number from ", column->min, " to ", column->max));
  }
  column->set(request, value);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::vector<TraceRequest>> ReadTrace(std::istream& text) {
  std::vector<std::string> header = {kSecondsColumn, "rows"};
  std::vector<TraceRequest> trace;
  std::string line;
  for (int number = 1; std::getline(text, line); ++number) {
    const absl::string_view bare = absl::StripAsciiWhitespace(line);
    if (bare.empty() || bare[0] == '#') continue;
    const auto wrong = [&](absl::string_view what) {
      return absl::InvalidArgumentError(absl::StrCat("line ", number, ": ", what));
    };
    const std::vector<std::string> cells = Cells(line);
    if (number == 1 && absl::ascii_isalpha(static_cast<unsigned char>(bare[0]))) {
      header = cells;
      if (absl::Status status = CheckHeader(header); !status.ok()) return wrong(status.message());
      continue;
    }
    if (cells.size() != header.size()) {
      return wrong(absl::StrCat(cells.size(), " cells, ", header.size(), " columns"));
    }
    TraceRequest request;
    for (std::size_t i = 0; i < cells.size(); ++i) {
      if (absl::Status status = SetCell(header[i], cells[i], request); !status.ok()) return wrong(status.message());
    }
    if (!trace.empty() && request.at < trace.back().at) return wrong("seconds: before the line above");
    trace.push_back(std::move(request));
  }
  if (trace.empty()) return absl::InvalidArgumentError("no request in it");
  return trace;
}

std::vector<TraceRequest> AtRate(std::vector<TraceRequest> trace, double rows_per_second) {
  if (trace.empty() || trace.back().at.count() == 0) return trace;
  const auto rows = std::accumulate(trace.begin(), trace.end(), std::int64_t{0},
                                    [](std::int64_t sum, const TraceRequest& request) { return sum + request.rows; });
  const double slower =
      static_cast<double>(rows) * 1e6 / (static_cast<double>(trace.back().at.count()) * rows_per_second);
  for (TraceRequest& request : trace) {
    request.at = microseconds(static_cast<std::int64_t>(static_cast<double>(request.at.count()) * slower));
  }
  return trace;
}

}  // namespace expertd
