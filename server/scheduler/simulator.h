// A server without threads, sockets or a device: the real admission, books and policy, under a clock that jumps from
// event to event. Says what a load would do to a server before there is one.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "server/scheduler/admission.h"
#include "server/scheduler/policy.h"
#include "server/scheduler/trace.h"

namespace expertd {

// What the device and the way to it cost, as measured while the server was lightly loaded.
struct CostModel {
  double batch_seconds = 0;     // of every batch,
  double row_seconds = 0;       // and for each of its rows
  double overhead_seconds = 0;  // of a request, outside of queue and batch
};

// Rows a second that full batches of the model make.
double Capacity(const CostModel& cost, std::int64_t max_batch_rows, int concurrency);

// seconds(batch) = batch_seconds + row_seconds * rows through the observations (rows, seconds) by least squares,
// neither below zero; an observation counts once.
CostModel FitCost(const std::vector<std::pair<std::int64_t, double>>& batches, double overhead_seconds);

struct SimulatedServer {
  CostModel cost;
  BatchLimits limits;
  AdmissionLimits admission;
  std::int64_t row_bytes = 0;  // of input and output together, for the byte budget
  int concurrency = 1;         // batches at once; each takes as long as if it were alone
};

// How one request of the trace ended.
struct Fate {
  absl::StatusCode code = absl::StatusCode::kOk;
  double seconds = 0;  // from its arrival
};

// As many fates as requests, in their order. The same every time.
std::vector<Fate> Simulate(const SimulatedServer& server, const std::vector<TraceRequest>& trace);

struct Forecast {
  double p50 = 0, p99 = 0;  // seconds, of requests that were answered; 0: none was
  double goodput = 0;       // answered requests a second, over the time in which requests came
  double refused = 0;       // share of requests that admission refused
  double expired = 0;       // share that was dropped because its deadline passed
};
Forecast Summarise(const std::vector<TraceRequest>& trace, const std::vector<Fate>& fates);

}  // namespace expertd
