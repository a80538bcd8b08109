#include "server/scheduler/layer_queue.h"

#include <algorithm>

namespace expertd {

void LayerQueue::Add(Waiting& request) {
  Lane& lane = lanes_[{request.tenant, request.priority}];
  lane.by_deadline.insert(&request);
  lane.by_arrival.insert(lane.by_arrival.end(), &request);
  rows_ += request.rows;
}

void LayerQueue::Take(Waiting& request, std::int64_t rows) {
  rows_ -= rows;
  request.rows -= rows;
  if (request.rows > 0) return;
  const auto lane = lanes_.find({request.tenant, request.priority});
  lane->second.by_deadline.erase(&request);
  lane->second.by_arrival.erase(&request);
  if (lane->second.by_arrival.empty()) lanes_.erase(lane);
}

const Waiting& LayerQueue::oldest() const {
  const auto earlier = [](const auto& a, const auto& b) {
    return EarlierArrival()(*a.second.by_arrival.begin(), *b.second.by_arrival.begin());
  };
  return **std::min_element(lanes_.begin(), lanes_.end(), earlier)->second.by_arrival.begin();
}

}  // namespace expertd
