#include "server/scheduler/layer_queue.h"

#include <tuple>

namespace expertd {

std::int64_t UrgencyBand(int priority, Waiting::TimePoint arrival, std::chrono::microseconds ageing_step) {
  return arrival.time_since_epoch() / ageing_step - priority;
}

bool MoreUrgent::operator()(const Waiting* a, const Waiting* b) const {
  return std::tie(a->band, a->deadline, a->id) < std::tie(b->band, b->deadline, b->id);
}

void LayerQueue::Add(Waiting& request) {
  order_.insert(&request);
  arrivals_.insert(arrivals_.end(), &request);
  rows_ += request.rows;
}

void LayerQueue::Take(Waiting& request, std::int64_t rows) {
  rows_ -= rows;
  request.rows -= rows;
  if (request.rows > 0) return;
  order_.erase(&request);
  arrivals_.erase(&request);
}

}  // namespace expertd
