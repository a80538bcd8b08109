#include "client/cpp/program/bench/trace_file.h"

#include <cmath>
#include <fstream>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace expertd::client {
namespace {

constexpr double kMaxSeconds = 1e9;  // further offsets would not fit 64 bits of nanoseconds

absl::Status ParseLine(absl::string_view line, Nanos origin, Trace& trace) {
  const std::vector<absl::string_view> fields = absl::StrSplit(line, ',');
  double seconds = 0;
  std::int64_t rows = 0;
  if (fields.size() != 2 || !absl::SimpleAtod(absl::StripAsciiWhitespace(fields[0]), &seconds) ||
      !absl::SimpleAtoi(absl::StripAsciiWhitespace(fields[1]), &rows)) {
    return absl::InvalidArgumentError(absl::StrCat("\"", line, "\" is not \"seconds,rows\""));
  }
  if (!(std::abs(seconds) <= kMaxSeconds)) {
    return absl::InvalidArgumentError(absl::StrCat("seconds=", fields[0], " is not within ", kMaxSeconds));
  }
  if (rows < 1) return absl::InvalidArgumentError(absl::StrCat("rows=", rows, " is not at least 1"));
  const Nanos at = std::llround(seconds * kNanosPerSecond) - origin;
  if (!trace.at.empty() && at < trace.at.back()) {
    return absl::InvalidArgumentError(absl::StrCat("seconds=", fields[0], " is before the line above"));
  }
  trace.at.push_back(at);
  trace.rows.push_back(rows);
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<Trace> ParseTrace(absl::string_view text, const std::string& name) {
  Trace trace;
  Nanos origin = 0;
  int number = 0;
  for (const absl::string_view raw : absl::StrSplit(text, '\n')) {
    const absl::string_view line = absl::StripAsciiWhitespace(raw);
    const bool names = ++number == 1 && !line.empty() && absl::ascii_isalpha(static_cast<unsigned char>(line[0]));
    if (line.empty() || line[0] == '#' || names) continue;
    if (const absl::Status status = ParseLine(line, origin, trace); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(name, ":", number, ": ", status.message()));
    }
    if (trace.at.size() == 1) {
      origin = trace.at[0];
      trace.at[0] = 0;
    }
  }
  if (trace.at.empty()) return absl::InvalidArgumentError(absl::StrCat(name, ": no request in it"));
  return trace;
}

absl::StatusOr<Trace> ReadTrace(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file || !(text << file.rdbuf())) return absl::InvalidArgumentError(absl::StrCat(path, ": cannot be read"));
  return ParseTrace(text.str(), path);
}

}  // namespace expertd::client
