// The budget of rows and bytes that accepted requests may hold, and the decision to take one more.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"

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

  // Decides at once. ResourceExhausted with a retry hint (server/status.h): the budget is full, or the expected wait
  // (rows ahead x measured time per row) passes `deadline`. DeadlineExceeded: `deadline` is not after `now`.
  absl::StatusOr<Ticket> Admit(std::int64_t rows, std::int64_t bytes, std::chrono::steady_clock::time_point now,
                               std::chrono::steady_clock::time_point deadline);

  // The engine ran `rows` rows in `seconds`: feeds the estimate of the wait (exponentially weighted).
  void ObserveBatch(std::int64_t rows, double seconds);

  std::int64_t rows_in_flight() const;

 private:
  friend class Ticket;
  void Return(std::int64_t rows, std::int64_t bytes);

  const AdmissionLimits limits_;
  mutable Mutex mutex_;
  std::int64_t rows_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  double seconds_per_row_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace expertd
