#include "client/cpp/retry.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cpp/messages.h"
#include "kernels/base/mutex.h"

namespace expertd::client {
namespace {

bool Retryable(const absl::Status& error) {
  return error.code() == absl::StatusCode::kUnavailable || error.code() == absl::StatusCode::kResourceExhausted;
}

}  // namespace

absl::Status Validate(const RetryPolicy& policy) {
  const struct {
    const char* field;
    double value, least;
  } limits[] = {{"attempts", static_cast<double>(policy.attempts), 1},
                {"backoff", static_cast<double>(policy.backoff.count()), 0},
                {"max_backoff", static_cast<double>(policy.max_backoff.count()), 0},
                {"budget", policy.budget, 0},
                {"refill", policy.refill, 0}};
  for (const auto& [field, value, least] : limits) {
    if (!(value >= least))
      return absl::InvalidArgumentError(absl::StrCat("retry.", field, "=", value, ": at least ", least));
  }
  return absl::OkStatus();
}

class RetryBudget::State {
 public:
  State(const RetryPolicy& policy, Random random)
      : policy_(policy), random_(std::move(random)), tokens_(policy.budget) {}

  bool enabled() const { return policy_.attempts > 1; }

  void Succeeded() {
    MutexLock lock(mutex_);
    tokens_ = std::min(policy_.budget, tokens_ + policy_.refill);
  }

  std::optional<std::chrono::microseconds> WaitAfter(int attempt, const absl::Status& error, RetryClock::time_point now,
                                                     RetryClock::time_point deadline) {
    if (attempt >= policy_.attempts || !Retryable(error)) return std::nullopt;
    MutexLock lock(mutex_);
    const auto wait = RetryAfter(error).value_or(Backoff(attempt));
    if (tokens_ < 1 || deadline - now <= wait) return std::nullopt;
    tokens_ -= 1;
    return wait;
  }

 private:
  std::chrono::microseconds Backoff(int attempt) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const double grown = static_cast<double>(policy_.backoff.count()) * std::exp2(attempt - 1);
    const double most = std::min(grown, static_cast<double>(policy_.max_backoff.count()));
    return std::chrono::microseconds(static_cast<std::int64_t>(random_() * most));
  }

  const RetryPolicy policy_;
  Mutex mutex_;
  const Random random_ ABSL_GUARDED_BY(mutex_);
  double tokens_ ABSL_GUARDED_BY(mutex_);
};

RetryBudget::RetryBudget(const RetryPolicy& policy)
    : RetryBudget(policy, [random = std::mt19937_64(std::random_device()())]() mutable {
        return std::uniform_real_distribution<double>()(random);
      }) {}
RetryBudget::RetryBudget(const RetryPolicy& policy, Random random)
    : state_(std::make_unique<State>(policy, std::move(random))) {}
RetryBudget::~RetryBudget() = default;

bool RetryBudget::enabled() const { return state_->enabled(); }
void RetryBudget::Succeeded() { state_->Succeeded(); }
std::optional<std::chrono::microseconds> RetryBudget::WaitAfter(int attempt, const absl::Status& error,
                                                                RetryClock::time_point now,
                                                                RetryClock::time_point deadline) {
  return state_->WaitAfter(attempt, error, now, deadline);
}

}  // namespace expertd::client
