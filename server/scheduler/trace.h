// Traces of requests: when they came and what they wanted.
#pragma once

#include <chrono>
#include <cstdint>
#include <istream>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/caller.h"

namespace expertd {

// One request of a trace.
struct TraceRequest {
  std::chrono::microseconds at{0};  // since the start
  std::int64_t rows = 1;
  std::int64_t layer = 0;
  int priority = 0;
  std::chrono::microseconds timeout{30'000'000};
  std::string tenant = kDefaultTenant;
};

// CSV, one request a line, in the order of time; blank lines and lines that start with # are passed over. A first line
// of names tells the columns: seconds and rows, and, where they differ from the above, layer, priority, timeout_us and
// tenant; without it they are "seconds,rows", as `expertd-client bench --trace` reads them. InvalidArgument naming
// line, column and value; also when there is no request.
absl::StatusOr<std::vector<TraceRequest>> ReadTrace(std::istream& text);

// The same requests, faster or slower, so that on average `rows_per_second` (> 0) come.
std::vector<TraceRequest> AtRate(std::vector<TraceRequest> trace, double rows_per_second);

}  // namespace expertd
