#include "server/scheduler/admission.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/types/span.h"
#include "server/status.h"

namespace expertd {
namespace {

using std::chrono::microseconds;

// Hints stay between "not at once" and "soon enough to notice that the load is gone".
constexpr microseconds kMinRetry = std::chrono::milliseconds(1);
constexpr microseconds kMaxRetry = std::chrono::seconds(10);

microseconds Hint(microseconds expected) { return std::clamp(expected, kMinRetry, kMaxRetry); }

// One of the budgets that a request draws on.
struct Budget {
  const char* field;
  std::int64_t wanted;
  std::int64_t in_use;
  std::int64_t limit;
};

absl::Status CheckBudget(const Budget& budget, microseconds expected_wait) {
  if (budget.wanted > budget.limit) {
    return absl::InvalidArgumentError(absl::StrCat(budget.field, ": ", budget.wanted, " are more than the ",
                                                   budget.limit, " that this server holds at any time"));
  }
  if (budget.wanted > budget.limit - budget.in_use) {
    return RetryLater(absl::StrCat(budget.field, ": ", budget.wanted, " do not fit beside the ", budget.in_use,
                                   " in flight (limit ", budget.limit, ")"),
                      Hint(expected_wait));
  }
  return absl::OkStatus();
}

}  // namespace

Ticket::Ticket(std::shared_ptr<Admission> admission, std::int64_t rows, std::int64_t bytes)
    : admission_(std::move(admission)), rows_(rows), bytes_(bytes) {}

Ticket::Ticket(Ticket&& other) noexcept
    : admission_(std::move(other.admission_)), rows_(other.rows_), bytes_(other.bytes_) {}

Ticket& Ticket::operator=(Ticket&& other) noexcept {
  if (this != &other) {
    Reset();
    admission_ = std::move(other.admission_);
    rows_ = other.rows_;
    bytes_ = other.bytes_;
  }
  return *this;
}

Ticket::~Ticket() { Reset(); }

void Ticket::Reset() {
  if (admission_ != nullptr) std::exchange(admission_, nullptr)->Return(rows_, bytes_);
}

absl::StatusOr<Ticket> Admission::Admit(std::int64_t rows, std::int64_t bytes,
                                        std::chrono::steady_clock::time_point now,
                                        std::chrono::steady_clock::time_point deadline, int priority) {
  if (deadline <= now) {
    const auto late = std::chrono::duration_cast<microseconds>(now - deadline);
    return absl::DeadlineExceededError(absl::StrCat("deadline: passed ", late.count(), " us before the request came"));
  }
  MutexLock lock(mutex_);
  const microseconds drained = ExpectedWaitLocked(0);
  for (const Budget& budget :
       {Budget{"rows", rows, rows_, limits_.max_rows}, Budget{"bytes", bytes, bytes_, limits_.max_bytes}}) {
    if (absl::Status fits = CheckBudget(budget, drained); !fits.ok()) return fits;
  }
  const microseconds wait = ExpectedWaitLocked(priority);
  const auto left = std::chrono::duration_cast<microseconds>(deadline - now);
  if (wait > left) {
    return RetryLater(absl::StrCat("deadline: ", left.count(), " us away, and ", RowsAhead(priority),
                                   " rows ahead take about ", wait.count(), " us"),
                      Hint(wait - left));
  }
  rows_ += rows;
  bytes_ += bytes;
  return Ticket(shared_from_this(), rows, bytes);
}

void Admission::ObserveBatch(std::int64_t rows, double seconds) {
  MutexLock lock(mutex_);
  service_time_.Observe(rows, seconds);
}

void Admission::ObserveLoad(const Load& load) {
  MutexLock lock(mutex_);
  load_ = load;
}

std::optional<microseconds> Admission::ExpectBatch(std::int64_t rows) const {
  MutexLock lock(mutex_);
  if (service_time_.empty()) return std::nullopt;
  return microseconds(static_cast<std::int64_t>(service_time_.Expect({.batches = 1, .rows = rows}) * 1e6));
}

microseconds Admission::ExpectedWait(int priority) const {
  MutexLock lock(mutex_);
  return ExpectedWaitLocked(priority);
}

microseconds Admission::RetryHint() const { return Hint(ExpectedWait()); }

std::int64_t Admission::RowsAhead(int priority) const {
  const auto first = load_.queued_rows.begin() + std::clamp(priority, 0, kPriorities - 1);
  return std::accumulate(first, load_.queued_rows.end(), load_.running.rows);
}

microseconds Admission::ExpectedWaitLocked(int priority) const {
  double seconds = service_time_.Expect(load_.running);
  if (load_.queued.rows > 0) {
    // Batches are shared between priorities, so each is charged with its rows' part of them.
    const double ahead = static_cast<double>(RowsAhead(priority) - load_.running.rows);
    seconds += service_time_.Expect(load_.queued) * ahead / static_cast<double>(load_.queued.rows);
  }
  return microseconds(static_cast<std::int64_t>(seconds * 1e6));
}

std::int64_t Admission::rows_in_flight() const {
  MutexLock lock(mutex_);
  return rows_;
}

std::int64_t Admission::bytes_in_flight() const {
  MutexLock lock(mutex_);
  return bytes_;
}

void Admission::Return(std::int64_t rows, std::int64_t bytes) {
  MutexLock lock(mutex_);
  rows_ -= rows;
  bytes_ -= bytes;
}

}  // namespace expertd
