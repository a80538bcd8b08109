#include "server/scheduler/policy.h"

#include <algorithm>
#include <tuple>

namespace expertd {
namespace {

using TimePoint = Waiting::TimePoint;

// A lane's place in the order of service: what it holds besides its expired requests.
struct LaneView {
  absl::btree_set<Waiting*, EarlierDeadline>::const_iterator next, end;
  const TenantAccount* tenant = nullptr;
  std::int64_t age_class = 0;  // the higher, the more urgent

  Waiting& head() const { return **next; }
};

struct Live {
  std::int64_t rows = 0;
  std::vector<LaneView> lanes;
  TimePoint earliest_deadline = TimePoint::max();
};

// Deadlines rise within a lane, so the first that has not expired vouches for the rest, and a long queue costs as
// little as a short one.
Live DropExpired(const LayerQueue& queue, const BatchLimits& limits, TimePoint now, std::vector<Waiting*>& expired) {
  Live live{.rows = queue.rows()};
  for (const auto& lane : queue.lanes()) {
    const auto end = lane.second.by_deadline.end();
    auto next = lane.second.by_deadline.begin();
    for (; next != end && (*next)->deadline <= now; ++next) {
      live.rows -= (*next)->rows;
      expired.push_back(*next);
    }
    if (next == end) continue;
    live.earliest_deadline = std::min(live.earliest_deadline, (*next)->deadline);
    live.lanes.push_back(
        {.next = next, .end = end, .tenant = lane.first.first, .age_class = ClassOf(lane, limits.ageing_step, now)});
  }
  return live;
}

// Within a layer. `had`: virtual time of a lane's tenant.
template <class Had>
auto MostUrgent(std::vector<LaneView>& lanes, Had had) {
  return std::min_element(lanes.begin(), lanes.end(), [&](const LaneView& a, const LaneView& b) {
    const double had_a = had(a), had_b = had(b);
    const Waiting &x = a.head(), &y = b.head();
    return std::tie(b.age_class, had_a, x.deadline, x.id) < std::tie(a.age_class, had_b, y.deadline, y.id);
  });
}

// Between layers.
bool ServedBefore(const LaneView& a, const LaneView& b) {
  const Waiting &x = a.head(), &y = b.head();
  return std::tie(b.age_class, a.tenant->virtual_time, x.arrival, x.id) <
         std::tie(a.age_class, b.tenant->virtual_time, y.arrival, y.id);
}

// When the queue's batch should start: at once when it is full, else when the window of its oldest request ends; but
// not so late that a request would expire for nothing but company.
TimePoint ReadyAt(const LayerQueue& queue, const Live& live, const BatchLimits& limits, TimePoint now) {
  if (limits.window.count() == 0) return now;
  const TimePoint window_end = queue.oldest().arrival + limits.window;
  if (live.rows >= limits.max_rows || live.earliest_deadline <= window_end) return now;
  return window_end;
}

std::vector<Pick> Fill(Live live, const BatchLimits& limits) {
  std::vector<Pick> batch;
  std::int64_t room = limits.max_rows;
  // Virtual times as they will be when the picks so far are charged. Few tenants: a list.
  std::vector<std::pair<const TenantAccount*, double>> had;
  const auto time_of = [&](const TenantAccount* tenant) -> double& {
    const auto found = std::find_if(had.begin(), had.end(), [&](const auto& entry) { return entry.first == tenant; });
    return found != had.end() ? found->second : had.emplace_back(tenant, tenant->virtual_time).second;
  };
  while (room > 0 && !live.lanes.empty()) {
    const auto lane = MostUrgent(live.lanes, [&](const LaneView& view) { return time_of(view.tenant); });
    const std::int64_t rows = std::min(lane->head().rows, room);
    batch.push_back({.request = &lane->head(), .rows = rows});
    room -= rows;
    time_of(lane->tenant) += static_cast<double>(rows) * limits.row_seconds / lane->tenant->weight;
    if (++lane->next == lane->end) live.lanes.erase(lane);
  }
  return batch;
}

}  // namespace

std::int64_t ClassOf(const LayerQueue::Lanes::value_type& lane, std::chrono::microseconds ageing_step, TimePoint now) {
  const auto& [tenant, priority] = lane.first;
  const TimePoint waits_since =
      std::max((*lane.second.by_arrival.begin())->arrival, tenant->served[static_cast<std::size_t>(priority)]);
  return priority + (now - waits_since) / ageing_step;
}

BatchDecision Decide(const LayerQueues& queues, const BatchLimits& limits, TimePoint now) {
  BatchDecision decision;
  Live chosen;
  const auto had_now = [](const LaneView& lane) { return lane.tenant->virtual_time; };
  LaneView head;
  for (const auto& [layer, queue] : queues) {
    Live live = DropExpired(queue, limits, now, decision.expired);
    if (live.lanes.empty()) continue;
    const TimePoint ready_at = ReadyAt(queue, live, limits, now);
    const LaneView front = *MostUrgent(live.lanes, had_now);
    if (ready_at > now) {
      decision.look_again = std::min(decision.look_again.value_or(TimePoint::max()), ready_at);
    } else if (chosen.lanes.empty() || ServedBefore(front, head)) {
      chosen = std::move(live);
      head = front;
    }
  }
  if (!chosen.lanes.empty()) {
    decision.batch = Fill(std::move(chosen), limits);
    decision.look_again.reset();
  }
  return decision;
}

}  // namespace expertd
