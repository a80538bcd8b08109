// The requests that wait for one layer, in the order in which they are to be served.
#pragma once

#include <chrono>
#include <cstdint>

#include "absl/container/btree_set.h"
#include "absl/container/flat_hash_map.h"
#include "kernels/engine.h"

namespace expertd {

// A waiting request as the policy sees it. A value of the scheduler's; queues only point to it, so while it is queued
// all but `rows` must stay as it is.
struct Waiting {
  using TimePoint = std::chrono::steady_clock::time_point;

  std::uint64_t id = 0;   // unique, rises with arrival
  std::int64_t band = 0;  // UrgencyBand(): the lower, the more urgent
  TimePoint arrival;
  TimePoint deadline = TimePoint::max();
  std::int64_t rows = 0;  // not yet handed to a batch; > 0 while queued
};

// Priority with ageing as one number that never changes, so that queues stay sorted while time passes: a request gains
// a class for each multiple of `ageing_step` that goes by while it waits. Nothing starves: whatever arrives ten steps
// later is less urgent. `ageing_step` > 0.
std::int64_t UrgencyBand(int priority, Waiting::TimePoint arrival, std::chrono::microseconds ageing_step);

// Within a band the earliest deadline first, then arrival. Weighted fair shares between tenants belong between the two:
// a tenant's virtual time would follow the band here.
struct MoreUrgent {
  bool operator()(const Waiting* a, const Waiting* b) const;
};

struct EarlierArrival {
  bool operator()(const Waiting* a, const Waiting* b) const { return a->id < b->id; }
};

// Not synchronised. Adding and removing take logarithmic time.
class LayerQueue {
 public:
  using Order = absl::btree_set<Waiting*, MoreUrgent>;

  void Add(Waiting& request);
  // `rows` (> 0) of the request leave the queue, from its front; the request itself with its last row.
  void Take(Waiting& request, std::int64_t rows);

  bool empty() const { return order_.empty(); }
  std::int64_t rows() const { return rows_; }
  // Most urgent first.
  const Order& order() const { return order_; }
  // Not of an empty queue.
  const Waiting& most_urgent() const { return **order_.begin(); }
  const Waiting& oldest() const { return **arrivals_.begin(); }

 private:
  Order order_;
  absl::btree_set<Waiting*, EarlierArrival> arrivals_;
  std::int64_t rows_ = 0;
};

// Layers without waiting requests have no queue.
using LayerQueues = absl::flat_hash_map<const Layer*, LayerQueue>;

}  // namespace expertd
