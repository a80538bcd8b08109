// One accepted request on its way through the scheduler and the engine.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "kernels/engine.h"
#include "server/caller.h"
#include "server/scheduler/admission.h"

namespace expertd {

using Clock = std::chrono::steady_clock;
inline double Seconds(Clock::duration duration) { return std::chrono::duration<double>(duration).count(); }

// What a job's completion tells about the batch it ran in. A job whose rows ran in several batches has the sum of their
// stages, and the size of the largest. Seconds.
struct BatchReport {
  double queue = 0;  // from submission to the start of its batch, and between its batches
  StageTimes stages;
  std::int64_t rows = 0;      // of the whole batch
  std::int64_t requests = 0;  // in the batch
};

// Owned by the scheduler from Submit until `done` has been called, exactly once, outside any lock.
struct Job {
  LayerPtr layer;
  std::string tenant = kDefaultTenant;  // whose share of the device it is charged to (caller.h)
  std::int64_t rows = 0;                // > 0
  DType input_dtype = DType::kBF16;
  DType output_dtype = DType::kBF16;
  bool shared_expert = true;
  int priority = 0;  // 0..9, 9 is the most urgent
  Clock::time_point arrival;
  Clock::time_point deadline = Clock::time_point::max();

  RowBuffer input;         // [rows, D]
  RowBuffer output;        // [rows, D]
  bool on_device = false;  // both are in exported memory of the engine: not for the host's eyes
  RowBuffer routing;   // k > 0: ids [rows, k] i32, then weights [rows, k] f32, checked; with return_routing: room for
                       // the router's K
  std::int64_t k = 0;  // pre-routed when > 0
  bool return_routing = false;

  Ticket ticket;  // the budget this request holds; travels on with the job to the transport

  // ok: output is written. Otherwise the status for the caller (CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, ...). Called
  // from a scheduler thread, or from within Submit or Cancel; must not block. Takes the job back, so that buffers
  // outlive the answer.
  std::function<void(std::unique_ptr<Job> job, absl::Status status, const BatchReport& report)> done;
};

}  // namespace expertd
