// An open loop: requests go out when their time has come, whatever becomes of those before. It measures from the
// scheduled time, so that a stall is not left out of the latencies, and tells how well it kept its schedule. Unlike the
// load of `expertd-client bench` it keeps the fate of every request, and how long refusals took.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/histogram.h"

namespace expertd::bench {

// One request of a trace.
struct Shot {
  std::chrono::microseconds at{0};  // since the start
  std::int64_t rows = 1;
};
using Schedule = std::vector<Shot>;

// Poisson arrivals, `rate` a second for so long, of requests of 1 to `max_rows` rows. Equal seeds, equal schedules.
Schedule Poisson(double rate, std::chrono::milliseconds duration, std::int64_t max_rows, std::uint64_t seed);

struct OpenResult {
  double seconds = 0;
  std::int64_t sent = 0;
  std::int64_t good = 0;  // answered with a result within the deadline
  std::map<absl::StatusCode, std::int64_t> statuses;
  client::Histogram accepted;  // of answers with a result, nanoseconds
  client::Histogram rejected;  // of RESOURCE_EXHAUSTED
  client::Histogram lateness;  // of sending
  client::Histogram overhead;  // of answers with a result: latency, less the time in queue and batch
  std::vector<std::pair<std::int64_t, double>> batches;           // rows and seconds of each answer's batch
  std::vector<std::pair<std::chrono::microseconds, bool>> fates;  // by schedule: good or not

  double goodput() const { return static_cast<double>(good) / seconds; }
};

// Sends the schedule over the client's connections, a stream each, with `deadline` as every request's timeout. Blocks
// until all is answered. `make` gives the request for so many rows.
OpenResult RunOpen(const client::Client& client, const std::function<const client::Request&(std::int64_t rows)>& make,
                   const Schedule& schedule, std::chrono::milliseconds deadline);

}  // namespace expertd::bench
