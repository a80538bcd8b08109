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

// A tenant counts as one of those who share the budget for so long after its last request.
constexpr std::chrono::seconds kRemembered{5};

// One of the budgets that a request draws on.
struct Budget {
  const char* field;
  std::int64_t wanted;
  std::int64_t in_use;
  std::int64_t limit;
  std::int64_t tenants_own;  // of in_use
};

// `part`: of the limit that is the tenant's own, where others want theirs. What a tenant holds nothing beside may
// exceed it: a request larger than its part would never come in.
absl::Status CheckBudget(const Budget& budget, double part, microseconds expected_wait) {
  if (budget.wanted > budget.limit) {
    return absl::InvalidArgumentError(absl::StrCat(budget.field, ": ", budget.wanted, " are more than the ",
                                                   budget.limit, " that this server holds at any time"));
  }
  if (budget.wanted > budget.limit - budget.in_use) {
    return RetryLater(absl::StrCat(budget.field, ": ", budget.wanted, " do not fit beside the ", budget.in_use,
                                   " in flight (limit ", budget.limit, ")"),
                      Hint(expected_wait));
  }
  const auto own = static_cast<std::int64_t>(static_cast<double>(budget.limit) * part);
  if (budget.tenants_own > 0 && budget.wanted > own - budget.tenants_own) {
    return RetryLater(
        absl::StrCat(budget.field, ": ", budget.wanted, " do not fit beside the ", budget.tenants_own,
                     " in flight of this tenant, whose part of ", budget.limit, " is ", own, " while others share it"),
        Hint(expected_wait));
  }
  return absl::OkStatus();
}

}  // namespace

Ticket::Ticket(std::shared_ptr<Admission> admission, TenantHoldings& tenant, std::int64_t rows, std::int64_t bytes)
    : admission_(std::move(admission)), tenant_(&tenant), rows_(rows), bytes_(bytes) {}

Ticket::Ticket(Ticket&& other) noexcept
    : admission_(std::move(other.admission_)), tenant_(other.tenant_), rows_(other.rows_), bytes_(other.bytes_) {}

Ticket& Ticket::operator=(Ticket&& other) noexcept {
  if (this != &other) {
    Reset();
    admission_ = std::move(other.admission_);
    tenant_ = other.tenant_;
    rows_ = other.rows_;
    bytes_ = other.bytes_;
  }
  return *this;
}

Ticket::~Ticket() { Reset(); }

void Ticket::ReturnRows() {
  if (admission_ != nullptr) admission_->Return(*tenant_, std::exchange(rows_, 0), 0, /*tickets=*/0);
}

void Ticket::Reset() {
  if (admission_ != nullptr) std::exchange(admission_, nullptr)->Return(*tenant_, rows_, bytes_, /*tickets=*/1);
}

absl::StatusOr<Ticket> Admission::Admit(std::int64_t rows, std::int64_t bytes,
                                        std::chrono::steady_clock::time_point now,
                                        std::chrono::steady_clock::time_point deadline, int priority,
                                        absl::string_view tenant_name) {
  if (deadline <= now) {
    const auto late = std::chrono::duration_cast<microseconds>(now - deadline);
    return absl::DeadlineExceededError(absl::StrCat("deadline: passed ", late.count(), " us before the request came"));
  }
  MutexLock lock(mutex_);
  TenantHoldings& tenant = HoldingsOf(tenant_name, now);
  const double part = PartOf(tenant, now);
  const microseconds drained = WaitFor(static_cast<double>(load_.queued.rows));
  for (const Budget& budget : {Budget{"rows", rows, rows_, limits_.max_rows, tenant.rows},
                               Budget{"bytes", bytes, bytes_, limits_.max_bytes, tenant.bytes}}) {
    if (absl::Status fits = CheckBudget(budget, part, drained); !fits.ok()) return fits;
  }
  double ahead = static_cast<double>(QueuedAhead(priority));
  if (part < 1) {
    // Shares let no more of the others' rows by than belong to the rows of this tenant, these included.
    ahead = std::min(ahead, static_cast<double>(tenant.rows + rows) / part - static_cast<double>(rows));
  }
  const microseconds wait = WaitFor(ahead), own = OwnBatch(rows);
  const auto left = std::chrono::duration_cast<microseconds>(deadline - now);
  // What its own batch alone makes late is let in: to come again later would not help it.
  if (wait > left || (own <= left && wait > left - own)) {
    return RetryLater(absl::StrCat("deadline: ", left.count(), " us away, and ",
                                   load_.running.rows + static_cast<std::int64_t>(ahead), " rows ahead take about ",
                                   wait.count(), " us, its own batch ", own.count(), " us"),
                      Hint(wait + own - left));
  }
  rows_ += rows;
  bytes_ += bytes;
  tenant.rows += rows;
  tenant.bytes += bytes;
  ++tenant.tickets;
  return Ticket(shared_from_this(), tenant, rows, bytes);
}

TenantHoldings& Admission::HoldingsOf(absl::string_view name, std::chrono::steady_clock::time_point now) {
  auto found = tenants_.find(name);
  if (found == tenants_.end()) {
    // Names come and go; who holds nothing and has not come lately is forgotten.
    for (auto it = tenants_.begin(); it != tenants_.end();) {
      const bool gone = it->second.tickets == 0 && now - it->second.last_request > kRemembered;
      it = gone ? tenants_.erase(it) : std::next(it);
    }
    found = tenants_.emplace(std::string(name), TenantHoldings{.weight = limits_.weights.Of(name)}).first;
  }
  found->second.last_request = now;
  return found->second;
}

double Admission::PartOf(const TenantHoldings& tenant, std::chrono::steady_clock::time_point now) const {
  double all = 0;
  for (const auto& [name, other] : tenants_) {
    if (other.tickets > 0 || now - other.last_request <= kRemembered) all += other.weight;
  }
  return tenant.weight / all;
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

ServiceTime Admission::service_time() const {
  MutexLock lock(mutex_);
  return service_time_;
}

microseconds Admission::ExpectedWait(int priority) const {
  MutexLock lock(mutex_);
  return WaitFor(static_cast<double>(QueuedAhead(priority)));
}

microseconds Admission::RetryHint() const { return Hint(ExpectedWait()); }

std::int64_t Admission::QueuedAhead(int priority) const {
  const auto first = load_.queued_rows.begin() + std::clamp(priority, 0, kPriorities - 1);
  return std::accumulate(first, load_.queued_rows.end(), std::int64_t{0});
}

microseconds Admission::WaitFor(double rows_ahead) const {
  double seconds = service_time_.Expect(load_.running);
  // Batches are shared, so each row is charged with its part of them.
  if (load_.queued.rows > 0) {
    seconds += service_time_.Expect(load_.queued) * rows_ahead / static_cast<double>(load_.queued.rows);
  }
  return microseconds(static_cast<std::int64_t>(seconds * 1e6));
}

microseconds Admission::OwnBatch(std::int64_t rows) const {
  const std::int64_t beside = load_.queued.batches > 0 ? load_.queued.rows / load_.queued.batches : 0;
  return microseconds(
      static_cast<std::int64_t>(service_time_.Expect({.batches = 1, .rows = std::max(rows, beside)}) * 1e6));
}

std::int64_t Admission::rows_in_flight() const {
  MutexLock lock(mutex_);
  return rows_;
}

std::int64_t Admission::bytes_in_flight() const {
  MutexLock lock(mutex_);
  return bytes_;
}

void Admission::Return(TenantHoldings& tenant, std::int64_t rows, std::int64_t bytes, int tickets) {
  MutexLock lock(mutex_);
  rows_ -= rows;
  bytes_ -= bytes;
  tenant.rows -= rows;
  tenant.bytes -= bytes;
  tenant.tickets -= tickets;
}

}  // namespace expertd
