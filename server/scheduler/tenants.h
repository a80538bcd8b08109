// Who shares the engine, in which proportions, and what each has had of it. No threads, no locks, no clock.
#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertd {

inline constexpr int kPriorities = 10;

// Weights > 0 by tenant; a tenant that is not named weighs 1. While several want the engine, each gets its weight's
// part of the time.
class TenantWeights {
 public:
  // "NAME=WEIGHT,...", weights from 0.001 to 1000; empty: nobody is named. InvalidArgument naming the part.
  static absl::StatusOr<TenantWeights> Parse(absl::string_view text);

  double Of(absl::string_view tenant) const;

 private:
  absl::flat_hash_map<std::string, double> named_;
};

// What one tenant has had, as far as the order of service needs to know.
struct TenantAccount {
  using TimePoint = std::chrono::steady_clock::time_point;

  double weight = 1;
  double virtual_time = 0;    // seconds of engine time charged to it, over its weight
  std::int64_t requests = 0;  // that wait or run
  // When its requests of each priority last entered or left a batch.
  std::array<TimePoint, kPriorities> served;

  TenantAccount() { served.fill(TimePoint::min()); }
  void Charge(double seconds) { virtual_time += seconds / weight; }
};

// Fair queueing by virtual time: whoever has the least is served next. Accounts are forgotten when nothing depends on
// them, so they do not pile up with the names.
class TenantAccounts {
 public:
  explicit TenantAccounts(TenantWeights weights) : weights_(std::move(weights)) {}

  // The account of a tenant that has one more request. Who comes back from idleness is lifted to the least of those
  // that have requests: time that nobody asked for is not saved up. Valid until as many Leave as Enter.
  TenantAccount& Enter(const std::string& tenant);
  void Leave(TenantAccount& account) { --account.requests; }

  std::size_t size() const { return accounts_.size(); }

 private:
  // The least virtual time of those with requests, and never less than it was.
  void AdvanceFloor();

  const TenantWeights weights_;
  std::map<std::string, TenantAccount, std::less<>> accounts_;
  double floor_ = 0;
};

}  // namespace expertd
