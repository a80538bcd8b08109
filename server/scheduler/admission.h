// The budget of rows and bytes that accepted requests may hold, and the decision to take one more.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"
#include "server/caller.h"
#include "server/scheduler/service_time.h"
#include "server/scheduler/tenants.h"

namespace expertd {

class Admission;

// What one tenant holds of the budget.
struct TenantHoldings {
  double weight = 1;
  std::int64_t rows = 0;
  std::int64_t bytes = 0;
  std::int64_t tickets = 0;
  std::chrono::steady_clock::time_point last_request;
};

// A share of the budget, held from admission until the transport is done with the answer. Move-only; given back when
// destroyed, from any thread.
class Ticket {
 public:
  Ticket() = default;
  Ticket(Ticket&& other) noexcept;
  Ticket& operator=(Ticket&& other) noexcept;
  ~Ticket();

  // The answer is made: its rows are no longer in flight. The bytes are held until the transport has taken it.
  void ReturnRows();

 private:
  friend class Admission;
  Ticket(std::shared_ptr<Admission> admission, TenantHoldings& tenant, std::int64_t rows, std::int64_t bytes);
  void Reset();

  std::shared_ptr<Admission> admission_;
  TenantHoldings* tenant_ = nullptr;  // of the admission's
  std::int64_t rows_ = 0;
  std::int64_t bytes_ = 0;
};

struct AdmissionLimits {
  std::int64_t max_rows = 65536;       // accepted and not yet answered
  std::int64_t max_bytes = 1LL << 30;  // input, routing and output of what is accepted and not yet sent
  TenantWeights weights;
};

// The work that stands before the engine.
struct Load {
  Backlog running;
  Backlog queued;
  std::array<std::int64_t, kPriorities> queued_rows = {};  // the same rows by priority
};

// Self-synchronised. Use through std::shared_ptr: tickets keep it alive.
class Admission : public std::enable_shared_from_this<Admission> {
 public:
  explicit Admission(const AdmissionLimits& limits) : limits_(limits) {}

  // Decides at once, for `rows` >= 0 and `bytes` >= 0:
  //   InvalidArgument    more than the whole budget: it would never fit
  //   DeadlineExceeded   `deadline` is not after `now`
  //   ResourceExhausted  with a retry hint (server/status.h): the budget is in use, or the tenant's part of it while
  //                      others have come lately, or what runs and what waits at this priority (0..9) or above, as far
  //                      as it is served before this tenant's next, is expected to take until past `deadline`
  absl::StatusOr<Ticket> Admit(std::int64_t rows, std::int64_t bytes, std::chrono::steady_clock::time_point now,
                               std::chrono::steady_clock::time_point deadline, int priority = 0,
                               absl::string_view tenant = kDefaultTenant);

  // From the scheduler: the engine was busy for `seconds` with a batch of `rows` rows; what runs and waits now.
  void ObserveBatch(std::int64_t rows, double seconds);
  void ObserveLoad(const Load& load);

  // How long a batch of so many rows is expected to take; nothing until one has run.
  std::optional<std::chrono::microseconds> ExpectBatch(std::int64_t rows) const;
  // What has been learnt of the batches so far.
  ServiceTime service_time() const;
  // How long what runs, and what waits at this priority or above, is expected to take.
  std::chrono::microseconds ExpectedWait(int priority = 0) const;
  // The same for everything, within what makes a sensible hint to a refused caller.
  std::chrono::microseconds RetryHint() const;

  std::int64_t rows_in_flight() const;
  std::int64_t bytes_in_flight() const;

 private:
  friend class Ticket;
  void Return(TenantHoldings& tenant, std::int64_t rows, std::int64_t bytes, int tickets);
  TenantHoldings& HoldingsOf(absl::string_view tenant, std::chrono::steady_clock::time_point now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The tenant's weight over that of all who came lately, itself included.
  double PartOf(const TenantHoldings& tenant, std::chrono::steady_clock::time_point now) const
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // What runs, and `rows_ahead` of the rows that wait.
  std::chrono::microseconds WaitFor(double rows_ahead) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Of a request, shared with as many rows as batches of what waits have.
  std::chrono::microseconds OwnBatch(std::int64_t rows) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  std::int64_t QueuedAhead(int priority) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const AdmissionLimits limits_;
  mutable Mutex mutex_;
  std::int64_t rows_ ABSL_GUARDED_BY(mutex_) = 0;
  std::int64_t bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::string, TenantHoldings, std::less<>> tenants_ ABSL_GUARDED_BY(mutex_);
  ServiceTime service_time_ ABSL_GUARDED_BY(mutex_);
  Load load_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
