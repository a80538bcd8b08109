// What is counted while a load runs: windows that follow each other without a gap, after a warm-up.
//
// An operation of an open loop belongs to the window in which it was *scheduled*, and its latency counts from there:
// what a stalled server makes late is late, also what could not even be sent. One of a closed loop has no schedule: it
// belongs to the window in which it was answered, and counts from when it was sent.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "client/cpp/program/bench/book.h"
#include "client/cpp/program/bench/histogram.h"
#include "expertd/v1/expertd.pb.h"

namespace expertd::client {

// The stages of StageMicros in the order of a request's way, and the total.
inline constexpr std::array<const char*, 8> kStages = {"decode", "queue",   "stage_in",  "route",
                                                       "gemm",   "combine", "stage_out", "total"};

struct Window {
  double seconds = 0;
  Histogram latency;  // of operations that got all their answers, nanoseconds
  Histogram service;  // of the same operations from when they were sent; in a closed loop the same as latency
  std::map<absl::StatusCode, std::int64_t> statuses;  // of operations
  std::int64_t completed = 0, completed_rows = 0;     // answered inside the window: what the server got done

  void Merge(const Window& other);
  std::int64_t operations() const;  // with any status
  double FailedShare() const;       // of operations; 0 when there are none
  double CompletedPerSecond() const { return seconds > 0 ? static_cast<double>(completed) / seconds : 0; }
  double RowsPerSecond() const { return seconds > 0 ? static_cast<double>(completed_rows) / seconds : 0; }
};

// Of all windows together.
struct Counts {
  std::vector<Histogram> calls;                     // by layer: from sending a request to its answer
  std::int64_t answers = 0;                         // requests answered with a result
  std::array<double, kStages.size()> stage_us{};    // sums over answers
  double batch_requests = 0;                        // likewise
  std::map<std::int64_t, std::int64_t> batch_rows;  // rows of the batch -> answers that came from one
  Histogram send_lag;          // from schedule to sending, of operations that had a slot: our own lateness
  std::int64_t held_back = 0;  // operations that waited for a slot: too many were unanswered
  absl::Status first_error;

  double MeanBatchRows() const;
};

class Meter {
 public:
  struct Plan {
    bool open_loop = false;
    int calls = 1;  // requests of an operation
    Nanos warmup = 0;
    Nanos window = 0;  // length of each
    int windows = 1;
    std::int64_t answers = 0;  // > 0: one window, which ends when this many operations have been answered
  };

  explicit Meter(const Plan& plan);

  // A request of the operation was answered with a result.
  void Answered(const Operation& operation, Nanos now, const v1::ForwardResult& result);
  // The operation is over, with its first error if it had one.
  void Finished(const Operation& operation, std::int64_t rows, const absl::Status& status);

  // Whether something that happens now to this operation is measured.
  bool Measures(const Operation& operation, Nanos now) const { return WindowOf(operation, now) >= 0; }
  // Plan::answers are there.
  bool Full() const { return plan_.answers > 0 && windows_[0].latency.count() >= plan_.answers; }
  std::int64_t measured() const { return measured_; }
  Nanos end() const { return plan_.answers > 0 ? kNever : plan_.warmup + plan_.window * plan_.windows; }

  // No window is longer than until `now`. Call once.
  void Close(Nanos now);
  const std::vector<Window>& windows() const { return windows_; }
  const Counts& counts() const { return counts_; }

 private:
  // Index of the window of a point in time; -1: outside all.
  int WindowAt(Nanos at) const;
  int WindowOf(const Operation& operation, Nanos now) const {
    return WindowAt(plan_.open_loop ? operation.scheduled : now);
  }

  const Plan plan_;
  std::vector<Window> windows_;
  Counts counts_;
  std::int64_t measured_ = 0;
  Nanos full_at_ = kNever;
};

}  // namespace expertd::client
