#include "server/scheduler/policy.h"

#include <algorithm>
#include <tuple>

namespace expertd {
namespace {

using TimePoint = Waiting::TimePoint;

// Shows `visit` the front of each band; while it returns true, that band's next request too. Deadlines rise within a
// band, so the first that has not expired vouches for the rest, and a long queue costs as little as a short one.
template <class Visit>
void ForEachBandFront(const LayerQueue& queue, Visit visit) {
  const LayerQueue::Order& order = queue.order();
  for (auto it = order.begin(); it != order.end();) {
    if (visit(*it)) {
      ++it;
    } else {
      Waiting next_band{.id = 0, .band = (*it)->band + 1, .deadline = TimePoint::min()};
      it = order.lower_bound(&next_band);
    }
  }
}

// What a queue holds besides its expired requests.
struct Live {
  std::int64_t rows = 0;
  const Waiting* most_urgent = nullptr;
  TimePoint earliest_deadline = TimePoint::max();
};

Live DropExpired(const LayerQueue& queue, TimePoint now, std::vector<Waiting*>& expired) {
  Live live{.rows = queue.rows()};
  ForEachBandFront(queue, [&](Waiting* front) {
    if (front->deadline <= now) {
      live.rows -= front->rows;
      expired.push_back(front);
      return true;
    }
    if (live.most_urgent == nullptr) live.most_urgent = front;
    live.earliest_deadline = std::min(live.earliest_deadline, front->deadline);
    return false;
  });
  return live;
}

// When the queue's batch should start: at once when it is full, else when the window of its oldest request ends; but
// not so late that a request would expire for nothing but company.
TimePoint ReadyAt(const LayerQueue& queue, const Live& live, const BatchLimits& limits, TimePoint now) {
  const TimePoint window_end = queue.oldest().arrival + limits.window;
  if (live.rows >= limits.max_rows || live.earliest_deadline <= window_end) return now;
  return window_end;
}

std::vector<Pick> Fill(const LayerQueue& queue, std::int64_t max_rows, TimePoint now) {
  std::vector<Pick> batch;
  std::int64_t room = max_rows;
  for (Waiting* request : queue.order()) {
    if (room == 0) break;
    if (request->deadline <= now) continue;
    batch.push_back({.request = request, .rows = std::min(request->rows, room)});
    room -= batch.back().rows;
  }
  return batch;
}

bool ServedBefore(const Waiting& a, const Waiting& b) {
  return std::tie(a.band, a.arrival, a.id) < std::tie(b.band, b.arrival, b.id);
}

}  // namespace

BatchDecision Decide(const LayerQueues& queues, const BatchLimits& limits, TimePoint now) {
  BatchDecision decision;
  const LayerQueue* chosen = nullptr;
  const Waiting* head = nullptr;
  for (const auto& [layer, queue] : queues) {
    const Live live = DropExpired(queue, now, decision.expired);
    if (live.most_urgent == nullptr) continue;
    const TimePoint ready_at = ReadyAt(queue, live, limits, now);
    if (ready_at > now) {
      decision.look_again = std::min(decision.look_again.value_or(TimePoint::max()), ready_at);
    } else if (head == nullptr || ServedBefore(*live.most_urgent, *head)) {
      chosen = &queue;
      head = live.most_urgent;
    }
  }
  if (chosen != nullptr) {
    decision.batch = Fill(*chosen, limits.max_rows, now);
    decision.look_again.reset();
  }
  return decision;
}

}  // namespace expertd
