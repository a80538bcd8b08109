// A recorded load: when requests came and how many rows they had.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertd::client {

// Nanoseconds: since the start of a run, or a duration.
using Nanos = std::int64_t;
inline constexpr Nanos kNanosPerSecond = 1'000'000'000;

struct Trace {
  std::vector<Nanos> at;           // since the first; never decreasing
  std::vector<std::int64_t> rows;  // one each
};

// CSV: one request a line, "seconds,rows", seconds as a decimal number that never decreases, rows at least 1. A first
// line of names, blank lines and lines that start with # are passed over. InvalidArgument naming `name`, line and
// reason; also when there is no request.
absl::StatusOr<Trace> ParseTrace(absl::string_view text, const std::string& name);
absl::StatusOr<Trace> ReadTrace(const std::string& path);

}  // namespace expertd::client
