// The scheduler's books: which jobs wait, which run, and which are done. No threads, no locks, no clock: the scheduler
// calls it under its mutex and hands the finished jobs to their callers outside.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "server/job.h"
#include "server/scheduler/admission.h"
#include "server/scheduler/batch_runner.h"
#include "server/scheduler/job_entry.h"
#include "server/scheduler/layer_queue.h"
#include "server/scheduler/policy.h"
#include "server/scheduler/staging.h"
#include "server/scheduler/tenants.h"

namespace expertd {

// Allocated and filled outside the scheduler's lock; JobBook::Add gives it its id.
std::unique_ptr<JobEntry> MakeEntry(std::unique_ptr<Job> job, Clock::time_point now);

// A job that is out of the books.
struct FinishedJob {
  std::unique_ptr<Job> job;
  absl::Status status;
  BatchReport report;
  StagedRowsPtr copy;  // of rows that were not run: here, so that it is not dropped under a lock
};
using FinishedJobs = std::vector<FinishedJob>;

// Rows on their way through the engine; entries[i] belongs to pieces[i].
struct RunningBatch {
  LayerPtr layer;
  std::vector<JobEntry*> entries;
  std::vector<Piece> pieces;
  std::int64_t rows = 0;
  Clock::time_point start;
};

class JobBook {
 public:
  explicit JobBook(std::int64_t max_batch_rows, TenantWeights weights = {}, const StagingLimits& staging = {})
      : max_batch_rows_(max_batch_rows), tenants_(std::move(weights)), staging_(staging) {}

  // Puts the job into its layer's queue and returns its id.
  std::uint64_t Add(std::unique_ptr<JobEntry> entry);

  // Carries out what the policy decided: drops the expired, and moves the picked rows from the queue into a batch,
  // whose tenants are charged with what `service_time` says of it, each for its rows.
  RunningBatch Begin(const BatchDecision& decision, const ServiceTime& service_time, Clock::time_point now,
                     FinishedJobs& finished);
  // Books the results of the pieces. Jobs whose last rows these were are done, as are those that failed; their waiting
  // rows are not run.
  void End(const RunningBatch& batch, Clock::time_point now, FinishedJobs& finished);

  // Ends a job without an answer: at once, or when the last batch that holds rows of it ends. Unknown: does nothing.
  void Drop(std::uint64_t id, const absl::Status& reason, FinishedJobs& finished);
  // The same for every job that waits.
  void DropWaiting(const absl::Status& reason, FinishedJobs& finished);

  // What the engine is to copy ahead now.
  std::vector<StageOrder> Grant(Clock::time_point now) { return staging_.Grant(queues_, now); }
  // What came of an order: the copy, or null where the engine has refused it.
  void Begun(const StageOrder& order, const StagedRowsPtr& copy);

  const LayerQueues& queues() const { return queues_; }
  // For a device that will not come back: hands out what runs, each as a job without its buffers, which the device may
  // still write to; they stay here with the original until its batch ends, if it ever does.
  void Abandon(const absl::Status& reason, FinishedJobs& finished);

  // What waits and what runs.
  const Load& load() const { return load_; }

 private:
  void Enqueue(JobEntry& entry);
  void Dequeue(JobEntry& entry, std::int64_t rows);
  std::int64_t BatchesOf(const LayerQueue& queue) const;
  std::int64_t& QueuedRows(const JobEntry& entry);
  void Drop(JobEntry& entry, const absl::Status& reason, FinishedJobs& finished);
  void FinishIfDone(JobEntry& entry, FinishedJobs& finished);

  const std::int64_t max_batch_rows_;
  std::uint64_t last_id_ = 0;
  TenantAccounts tenants_;
  StagingBook staging_;
  LayerQueues queues_;
  absl::flat_hash_map<std::uint64_t, std::unique_ptr<JobEntry>> entries_;
  Load load_;
};

}  // namespace expertd
