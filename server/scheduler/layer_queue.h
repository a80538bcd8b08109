// The requests that wait for one layer, in the order in which they are to be served.
#pragma once

#include <chrono>
#include <cstdint>
#include <utility>

#include "absl/container/btree_map.h"
#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "kernels/engine.h"
#include "server/scheduler/tenants.h"

namespace expertd {

// A waiting request as the policy sees it. A value of the scheduler's; queues only point to it, so while it is queued
// all but `rows` must stay as it is.
struct Waiting {
  using TimePoint = std::chrono::steady_clock::time_point;

  std::uint64_t id = 0;  // unique, rises with arrival
  TenantAccount* tenant = nullptr;
  int priority = 0;  // 0..9, 9 is the most urgent
  TimePoint arrival;
  TimePoint deadline = TimePoint::max();
  std::int64_t rows = 0;  // not yet handed to a batch; > 0 while queued
};

struct EarlierDeadline {
  bool operator()(const Waiting* a, const Waiting* b) const {
    return std::pair(a->deadline, a->id) < std::pair(b->deadline, b->id);
  }
};

struct EarlierArrival {
  bool operator()(const Waiting* a, const Waiting* b) const { return a->id < b->id; }
};

// Not synchronised. Adding and removing take logarithmic time.
class LayerQueue {
 public:
  // One tenant's requests of one priority: the unit that ages and that shares are given to. Never empty.
  struct Lane {
    absl::btree_set<Waiting*, EarlierDeadline> by_deadline;
    absl::btree_set<Waiting*, EarlierArrival> by_arrival;
  };
  using Lanes = absl::btree_map<std::pair<const TenantAccount*, int>, Lane>;

  void Add(Waiting& request);
  // `rows` (> 0) of the request leave the queue, from its front; the request itself with its last row.
  void Take(Waiting& request, std::int64_t rows);

  bool empty() const { return lanes_.empty(); }
  std::int64_t rows() const { return rows_; }
  const Lanes& lanes() const { return lanes_; }
  // Where a request of this queue waits.
  const Lanes::value_type& LaneOf(const Waiting& request) const {
    return *lanes_.find(std::pair<const TenantAccount*, int>(request.tenant, request.priority));
  }
  // The first to have come. Not of an empty queue.
  const Waiting& oldest() const;

 private:
  Lanes lanes_;
  std::int64_t rows_ = 0;
};

// Layers without waiting requests have no queue.
using LayerQueues = absl::flat_hash_map<const Layer*, LayerQueue>;

}  // namespace expertd
