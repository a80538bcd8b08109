#include "server/scheduler/staging.h"

#include <algorithm>
#include <numeric>
#include <tuple>
#include <utility>

#include "server/scheduler/policy.h"

namespace expertd {
namespace {

bool ServedBefore(const SlotWish& a, const SlotWish& b) {
  const Waiting &x = *a.request, &y = *b.request;
  return std::tie(b.age_class, x.tenant->virtual_time, x.deadline, x.id) <
         std::tie(a.age_class, y.tenant->virtual_time, y.deadline, y.id);
}

// What a request of this priority may still take.
std::int64_t FreeFor(int priority, const SlotsHeld& held, const StagingLimits& limits) {
  std::int64_t free = limits.slots - std::accumulate(held.begin(), held.end(), std::int64_t{0});
  for (auto above = static_cast<std::size_t>(priority) + 1; above < held.size(); ++above) {
    free -= std::max<std::int64_t>(0, limits.reserve - held[above]);
  }
  return free;
}

}  // namespace

std::vector<SlotWish> GrantSlots(std::vector<SlotWish> wishes, const SlotsHeld& held, const StagingLimits& limits) {
  std::sort(wishes.begin(), wishes.end(), ServedBefore);
  std::vector<SlotWish> granted;
  SlotsHeld in_use = held;
  int held_up = -1;  // this priority and lower ones
  for (const SlotWish& wish : wishes) {
    const int priority = wish.request->priority;
    if (priority <= held_up || wish.rows > FreeFor(priority, {}, limits)) continue;  // or it would never fit
    if (wish.rows > FreeFor(priority, in_use, limits)) {
      held_up = priority;
      continue;
    }
    in_use[static_cast<std::size_t>(priority)] += wish.rows;
    granted.push_back(wish);
  }
  return granted;
}

void StagingBook::Add(JobEntry& entry) {
  if (limits_.slots == 0 || entry.job->on_device) return;
  Wish(entry, NextRows(entry));
  if (wishes_.contains(&entry)) entry.ahead.rows = Share(entry.job->input);
}

void StagingBook::Wish(JobEntry& entry, std::int64_t rows) {
  const Job& job = *entry.job;
  if (BytesOf(job.input_dtype, rows * job.layer->spec().hidden_size) >= limits_.from_bytes) wishes_.insert(&entry);
}

StagedRowsPtr StagingBook::Take(JobEntry& entry, std::int64_t rows) {
  Ahead& ahead = entry.ahead;
  if (ahead.rows == nullptr) return nullptr;
  const std::int64_t first = entry.first_waiting(), end = first + rows;
  StagedRowsPtr copy = ahead.copy;
  if (copy != nullptr && end < ahead.end) {
    Free(entry, rows);
    return copy;
  }
  if (ahead.end > first) Free(entry, ahead.end - first);
  ahead.end = 0;
  ahead.copy = nullptr;
  wishes_.erase(&entry);
  if (rows < entry.rows) Wish(entry, std::min(entry.rows - rows, limits_.max_batch_rows));
  return copy;
}

std::vector<StageOrder> StagingBook::Grant(const LayerQueues& queues, Waiting::TimePoint now) {
  std::vector<SlotWish> wishes;
  for (JobEntry* entry : wishes_) {
    if (entry->deadline <= now) continue;
    const auto& lane = queues.at(entry->job->layer.get()).LaneOf(*entry);
    wishes.push_back({entry, ClassOf(lane, limits_.ageing_step, now), NextRows(*entry)});
  }
  std::vector<StageOrder> orders;
  for (const SlotWish& wish : GrantSlots(std::move(wishes), held_, limits_)) {
    JobEntry& entry = static_cast<JobEntry&>(*wish.request);
    const Job& job = *entry.job;
    const std::int64_t row_bytes = BytesOf(job.input_dtype, job.layer->spec().hidden_size);
    wishes_.erase(&entry);
    held_[static_cast<std::size_t>(entry.priority)] += wish.rows;
    entry.ahead.end = entry.first_waiting() + wish.rows;
    orders.push_back({.job = entry.id,
                      .end = entry.ahead.end,
                      .rows = entry.ahead.rows,
                      .first = static_cast<std::size_t>(entry.first_waiting() * row_bytes),
                      .bytes = static_cast<std::size_t>(wish.rows * row_bytes)});
  }
  return orders;
}

void StagingBook::Begun(JobEntry& entry, const StageOrder& order, const StagedRowsPtr& copy) {
  Ahead& ahead = entry.ahead;
  if (ahead.end != order.end || ahead.copy != nullptr) return;
  if (copy == nullptr) {
    Free(entry, ahead.end - entry.first_waiting());
    ahead.end = 0;
  }
  ahead.copy = copy;
}

}  // namespace expertd
