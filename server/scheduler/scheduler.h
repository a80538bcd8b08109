// Continuous batching: one queue per layer; whenever the engine can take a batch, the policy picks what to run.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "kernels/engine.h"
#include "server/job.h"
#include "server/scheduler/tenants.h"

namespace expertd {

struct SchedulerOptions {
  // Of one batch; the engine's own limit, where that is lower. A larger request runs as several batches and is answered
  // once, and so may be the last request of a batch that it would overfill.
  std::int64_t max_batch_rows = 4096;
  std::chrono::microseconds batch_window{0};  // how long a batch may wait for company
  // What waits at one priority of one tenant gains a class per step in which none of it is served, so that a flood of
  // priority 9 leaves priority 0 a batch every ten steps at least. > 0.
  std::chrono::microseconds ageing_step{500'000};
  TenantWeights tenant_weights;
  // Submit itself runs batches that are expected to take no longer than this, and so saves the hop to a scheduler
  // thread, which for such a batch costs more than the batch. 0: never.
  std::chrono::microseconds inline_limit{0};
  // Rows that wait, up to so many batches, are copied to the device meanwhile (Engine::StageRows). 0: none.
  std::int64_t stage_batches_ahead = 2;
  // One idle thread looks for work so long before it goes to sleep: what is submitted meanwhile saves a wake-up, at the
  // price of a core. 0: never.
  std::chrono::microseconds busy_poll{0};
};

// Where the scheduler reads the time; tests substitute it.
class TimeSource {
 public:
  virtual ~TimeSource() = default;
  virtual Clock::time_point Now() const { return Clock::now(); }
};

// Told about every batch and every request that ends without an answer; called outside locks, from scheduler threads or
// from within Submit and Cancel; must not block.
class SchedulerObserver {
 public:
  virtual ~SchedulerObserver() = default;
  virtual void BatchDone(const Layer& layer, std::int64_t rows, std::int64_t requests, const StageTimes& stages) {}
  virtual void Dropped(const Layer& layer, const absl::Status& reason) {}
  // Once: the engine answered Internal and will not recover. Everything in flight is completed with that status, later
  // submissions with UNAVAILABLE.
  virtual void EngineLost(const absl::Status& reason) {}
};

struct QueueStats {
  std::string layer;  // "<model>/<layer>"
  std::int64_t rows = 0;
  double oldest_age_seconds = 0;
};

// Self-synchronised. Owns engine.info().concurrency threads, each of which runs one batch at a time: a request makes
// at most one thread hop, from the transport to there, and is completed there. Short batches run on the thread that
// submits (inline_limit). However many threads submit, no more than `concurrency` batches run at once. Copies ahead of
// batches are begun by the thread whose call made room for them or needs them: Submit, or a batch that begins.
class Scheduler {
 public:
  using JobId = std::uint64_t;

  // All references must outlive the scheduler.
  Scheduler(Engine& engine, Admission& admission, const SchedulerOptions& options, const TimeSource& time,
            SchedulerObserver& observer);
  // Completes what is queued with UNAVAILABLE, lets running batches end and joins the threads.
  ~Scheduler();

  // Takes the job. Its `done` is called exactly once, possibly before Submit returns (draining: UNAVAILABLE; or run
  // inline, perhaps with other callers' jobs, for about inline_limit at most). The id is for Cancel.
  JobId Submit(std::unique_ptr<Job> job);

  // Queued: completed with CANCELLED before Cancel returns. Running: its result is discarded and it is completed with
  // CANCELLED when the batch ends. Unknown or finished: nothing happens.
  void Cancel(JobId id);

  // Takes no more work from now on (UNAVAILABLE) and blocks until `done` has returned for everything accepted, or
  // `deadline`. False: not all done in time.
  bool Drain(Clock::time_point deadline);

  // How long the oldest batch has been with the engine; zero when none is.
  Clock::duration LongestRun() const;
  // For a watchdog: the engine is taken for lost. What runs and what waits is completed with `reason` (Internal) at
  // once; running jobs' buffers stay with the engine until their batch ends, if it does. Only the first call counts.
  void AbandonEngine(const absl::Status& reason);

  // Only the layers for which requests wait, in no particular order.
  std::vector<QueueStats> Stats() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace expertd
