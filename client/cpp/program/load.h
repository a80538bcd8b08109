// A closed loop: a fixed number of requests in flight, each sent again as soon as it is answered.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/program/histogram.h"

namespace expertd::client {

enum class Mode { kUnary, kStream };

struct LoadOptions {
  Mode mode = Mode::kStream;
  int concurrency = 8;     // requests in flight over all connections
  std::int64_t rows = 16;  // a request
  bool pre_routed = false;
  std::chrono::milliseconds warmup{2000};
  std::chrono::milliseconds duration{10000};
  std::int64_t requests = 0;                 // > 0: measure that many instead of `duration`
  std::chrono::milliseconds timeout{30000};  // of each request
  std::uint64_t seed = 1;
  int samples = 0;  // answers to keep for checking
};

// The stages of StageMicros in the order of a request's way, and the total.
inline constexpr std::array<const char*, 8> kStages = {"decode", "queue",   "stage_in",  "route",
                                                       "gemm",   "combine", "stage_out", "total"};

struct Sample {
  std::size_t slot = 0;  // whose rows these are
  Answer answer;
};

struct LoadResult {
  double seconds = 0;  // of the window
  Histogram latency;   // of answers with a result, nanoseconds
  std::map<absl::StatusCode, std::int64_t> statuses;
  absl::Status first_error;
  absl::Status broken;                            // not ok: a stream was ended before the window was over
  std::array<double, kStages.size()> stage_us{};  // sums over latency.count() answers
  double batch_rows = 0, batch_requests = 0;      // sums, likewise
  std::vector<Sample> samples;                    // chosen evenly from the whole window
  std::vector<Request> slots;                     // what each slot sends
};

// Blocks for warm-up and window, shows progress on stderr. After a refusal a slot pauses for as long as the server
// says. An error when the loop cannot start; errors of requests are part of the result.
absl::StatusOr<LoadResult> RunLoad(const Client& client, const v1::Layer& layer, const LoadOptions& options);

}  // namespace expertd::client
