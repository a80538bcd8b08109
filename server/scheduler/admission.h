// The budget of rows and bytes that accepted requests may hold, and the decision to take one more.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "server/scheduler/service_time.h"

namespace expertd {

class Admission;

// A share of the budget, held from admission until the transport is done with the answer. Move-only; given back when
// destroyed, from any thread.
class Ticket {
 public:
  Ticket() = default;
  Ticket(Ticket&& other) noexcept;
  Ticket& operator=(Ticket&& other) noexcept;
  ~Ticket();

 private:
  friend class Admission;
  Ticket(std::shared_ptr<Admission> admission, std::int64_t rows, std::int64_t bytes);
  void Reset();

  std::shared_ptr<Admission> admission_;
  std::int64_t rows_ = 0;
  std::int64_t bytes_ = 0;
};

struct AdmissionLimits {
  std::int64_t max_rows = 65536;       // rows accepted and not yet answered
  std::int64_t max_bytes = 1LL << 30;  // their input, routing and output bytes
};

// Self-synchronised. Use through std::shared_ptr: tickets keep it alive.
class Admission : public std::enable_shared_from_this<Admission> {
 public:
  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  // Decides at once, for `rows` >= 0 and `bytes` >= 0:
  //   InvalidArgument    more than the whole budget: it would never fit
  //   DeadlineExceeded   `deadline` is not after `now`
  //   ResourceExhausted  with a retry hint (server/status.h): the budget is in use, or the work that already waits is
  //                      expected to take until past `deadline`
  absl::StatusOr<Ticket> Admit(std::int64_t rows, std::int64_t bytes, std::chrono::steady_clock::time_point now,
                               std::chrono::steady_clock::time_point deadline);

  // From the scheduler: the engine was busy for `seconds` with a batch of `rows` rows; what waits or runs now.
  void ObserveBatch(std::int64_t rows, double seconds);
  void ObserveBacklog(const Backlog& backlog);

  // How long what waits and runs now is expected to take.
  std::chrono::microseconds ExpectedWait() const;

  std::int64_t rows_in_flight() const;
  std::int64_t bytes_in_flight() const;

 private:
  friend class Ticket;
  void Return(std::int64_t rows, std::int64_t bytes);
  std::chrono::microseconds ExpectedWaitLocked() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AdmissionLimits limits_;
  mutable Mutex mutex_;
  std::int64_t rows_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  ServiceTime service_time_ ABSL_GUARDED_BY(mutex_);
  Backlog backlog_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
