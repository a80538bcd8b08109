// Which waiting rows lie on the device ahead of their batch. No threads, no locks, no clock, no engine.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_set.h"
#include "server/scheduler/job_entry.h"
#include "server/scheduler/layer_queue.h"
#include "server/scheduler/tenants.h"

namespace expertd {

// A slot is room on the device for one row that waits; it ends when the row's batch begins.
struct StagingLimits {
  std::int64_t slots = 0;           // 0: rows go with their batch
  std::int64_t reserve = 0;         // of these, for each priority: not for lower ones
  std::int64_t from_bytes = 0;      // of a request; fewer are fetched by their batch for less
  std::int64_t max_batch_rows = 0;  // of a large request, so many at a time
  std::chrono::microseconds ageing_step{500'000};
};

// Slots in use by priority.
using SlotsHeld = std::array<std::int64_t, kPriorities>;

// A request that could have its next `rows` rows copied.
struct SlotWish {
  Waiting* request = nullptr;
  std::int64_t age_class = 0;
  std::int64_t rows = 0;
};

// The wishes that are granted, in the order of service:
//   class (priority, and what ageing adds to it)  >  least virtual time of the tenant  >  earliest deadline  > arrival.
// One that does not fit into what is free, less the unused reserves of the priorities above its own, waits, and with it
// whatever has no higher priority and comes later: many small requests keep no large one from its slots.
std::vector<SlotWish> GrantSlots(std::vector<SlotWish> wishes, const SlotsHeld& held, const StagingLimits& limits);

// Rows that got slots, for Engine::StageRows.
struct StageOrder {
  std::uint64_t job = 0;
  std::int64_t end = 0;  // Ahead::end
  std::shared_ptr<const RowBuffer> rows;
  std::size_t first = 0, bytes = 0;
};

class StagingBook {
 public:
  explicit StagingBook(const StagingLimits& limits) : limits_(limits) {}

  // A job has come to wait. Where its rows are worth a copy, its input has two owners from now on.
  void Add(JobEntry& entry);
  // The next `rows` rows of the job are about to leave the queue, and their slots become free. The copy that may hold
  // them, for the batch to use and then to drop; null: none was begun.
  StagedRowsPtr Take(JobEntry& entry, std::int64_t rows);
  // Slots for whatever now gets some.
  std::vector<StageOrder> Grant(const LayerQueues& queues, Waiting::TimePoint now);
  // What came of an order; null: the engine has refused, and the rows go with their batch. Takes no copy of rows that
  // have left meanwhile.
  void Begun(JobEntry& entry, const StageOrder& order, const StagedRowsPtr& copy);

  const SlotsHeld& held() const { return held_; }

 private:
  std::int64_t NextRows(const JobEntry& entry) const { return std::min(entry.rows, limits_.max_batch_rows); }
  void Free(JobEntry& entry, std::int64_t slots) { held_[static_cast<std::size_t>(entry.priority)] -= slots; }
  // Wishes for slots, where the job's next rows are worth a copy.
  void Wish(JobEntry& entry, std::int64_t rows);

  const StagingLimits limits_;
  SlotsHeld held_ = {};
  absl::flat_hash_set<JobEntry*> wishes_;  // without slots
};

}  // namespace expertd
