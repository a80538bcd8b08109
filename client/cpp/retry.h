// When a failed call is made again. Results do not depend on the batch, so a retry gives the same bits.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>

#include "absl/status/status.h"

namespace expertd::client {

using RetryClock = std::chrono::steady_clock;

// UNAVAILABLE and RESOURCE_EXHAUSTED are tried again, within the call's deadline. The server's pushback (RetryAfter) is
// waited for exactly; without one, waits are random up to backoff * 2^(attempt - 1), at most max_backoff.
struct RetryPolicy {
  int attempts = 1;  // of a call, the first included; 1: no retries
  std::chrono::microseconds backoff{10'000};
  std::chrono::microseconds max_backoff{1'000'000};
  // Shared by all calls of a client, so that retries cannot multiply an overload: each retry takes one token, each
  // success gives `refill` back, never above `budget`; without a token nothing is retried.
  double budget = 10;
  double refill = 0.1;
};

// InvalidArgument naming the field and its limit.
absl::Status Validate(const RetryPolicy& policy);

// Decides for all calls of one client. Thread-safe.
class RetryBudget {
 public:
  using Random = std::function<double()>;  // in [0, 1); called under a lock

  // A valid policy.
  explicit RetryBudget(const RetryPolicy& policy);
  RetryBudget(const RetryPolicy& policy, Random random);
  ~RetryBudget();

  // Whether anything is ever tried again.
  bool enabled() const;
  void Succeeded();
  // How long to wait before the attempt after attempt number `attempt` (the first is 1), which failed; absent: give up
  // and return `error`.
  std::optional<std::chrono::microseconds> WaitAfter(int attempt, const absl::Status& error, RetryClock::time_point now,
                                                     RetryClock::time_point deadline);

 private:
  class State;
  std::unique_ptr<State> state_;
};

}  // namespace expertd::client
