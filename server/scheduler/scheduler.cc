#include "server/scheduler/scheduler.h"

#include <algorithm>
#include <atomic>
#include <optional>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"
#include "server/scheduler/batch_runner.h"
#include "server/scheduler/job_book.h"
#include "server/scheduler/policy.h"
#include "server/scheduler/staging.h"
#include "server/status.h"

namespace expertd {
namespace {

BatchLimits LimitsOf(const SchedulerOptions& options, const EngineInfo& info) {
  const std::int64_t engine_rows = info.max_batch_rows > 0 ? info.max_batch_rows : options.max_batch_rows;
  return {.max_rows = std::max<std::int64_t>(1, std::min(options.max_batch_rows, engine_rows)),
          .window = options.batch_window,
          .ageing_step = std::max(options.ageing_step, std::chrono::microseconds(1))};
}

// Each of the priorities above the lowest can count on a thirty-second: a small request of theirs finds room.
constexpr std::int64_t kReserveParts = 32;

StagingLimits StagingOf(const SchedulerOptions& options, const BatchLimits& limits, const EngineInfo& info) {
  const std::int64_t slots = info.stage_from_bytes > 0 ? options.stage_batches_ahead * limits.max_rows : 0;
  return {.slots = slots,
          .reserve = slots / kReserveParts,
          .from_bytes = info.stage_from_bytes,
          .max_batch_rows = limits.max_rows,
          .ageing_step = limits.ageing_step};
}

}  // namespace

class Scheduler::Impl {
 public:
  Impl(Engine& engine, Admission& admission, const SchedulerOptions& options, const TimeSource& time,
       SchedulerObserver& observer);
  ~Impl();

  JobId Submit(std::unique_ptr<Job> job);
  void Cancel(JobId id);
  bool Drain(Clock::time_point deadline);
  Clock::duration LongestRun() const;
  // What runs is completed when its batch ends, or at once when that is not expected any more (`abandon`).
  void LoseEngine(const absl::Status& reason, bool abandon);
  std::vector<QueueStats> Stats() const;

 private:
  // What a thread does between two looks at the queues. Whoever has one holds one of the engine's places, and looks
  // again before it gives the place back: so nobody needs waking while all places are taken.
  struct Turn {
    FinishedJobs expired;
    RunningBatch batch;
    std::vector<StageOrder> ahead;  // rows that may go to the device while it runs
  };

  void RunTurns();
  // Blocks until there is something to do and a place for it; false when the scheduler is being destroyed.
  bool NextTurn(Turn& turn);
  // Runs turns on the thread that submits, from one that was begun there.
  void RunInline(Turn& turn);
  // False: nothing to do now; `look_again` says when there will be, if that is known.
  bool Begin(Turn& turn, std::optional<Clock::time_point>& look_again) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // True when what waits is expected to be computed within `limit`; as long as no batch has run, nothing is.
  bool RunsWithin(Clock::duration limit) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Do(Turn& turn) ABSL_LOCKS_EXCLUDED(mutex_);
  void Run(RunningBatch& batch);
  // Whether what is submitted now will wait, and its rows go ahead. Else they go with a batch at once.
  bool MustWait() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) { return places_ == 0 || limits_.window.count() > 0; }
  void StageAhead(const std::vector<StageOrder>& orders) ABSL_LOCKS_EXCLUDED(mutex_);
  void PublishLoad() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    admission_.ObserveLoad(book_.load());
    rows_wait_.store(book_.load().queued.rows > 0, std::memory_order_relaxed);
  }
  // Returns when something waits, or when it has looked for long enough; one thread at a time.
  void PollForWork() ABSL_LOCKS_EXCLUDED(mutex_);
  // A sleeping thread is needed for what waits. Who polls looks at the queues, under the lock, before it sleeps.
  bool ShouldWake() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return places_ > 0 && idle_ > 0 && !polling_ && !book_.queues().empty();
  }
  // Hands jobs to their callers.
  void Deliver(FinishedJobs& finished) ABSL_LOCKS_EXCLUDED(mutex_);

  // Set at construction.
  Engine& engine_;
  Admission& admission_;
  const TimeSource& time_;
  SchedulerObserver& observer_;
  const BatchLimits limits_;
  const std::chrono::microseconds inline_limit_;
  const std::chrono::microseconds busy_poll_;

  // Self-synchronised: hints for PollForWork.
  std::atomic<bool> rows_wait_ = false;
  std::atomic<bool> polling_ = false;

  mutable Mutex mutex_;  // taken before the admission's
  CondVar work_;         // something waits and there is a place, or stop_
  CondVar delivered_;    // undelivered_ became 0
  JobBook book_ ABSL_GUARDED_BY(mutex_);
  std::vector<Clock::time_point> running_since_ ABSL_GUARDED_BY(mutex_);  // of each batch that the engine has
  int idle_ ABSL_GUARDED_BY(mutex_) = 0;                                  // threads that wait for work_
  int places_ ABSL_GUARDED_BY(mutex_);                    // batches that the engine takes besides those that run
  std::int64_t undelivered_ ABSL_GUARDED_BY(mutex_) = 0;  // jobs taken whose `done` has not returned
  Clock::time_point last_batch_end_ ABSL_GUARDED_BY(mutex_) = Clock::time_point::min();
  absl::Status refusal_ ABSL_GUARDED_BY(mutex_);  // for whatever is submitted from now on; ok: none
  bool engine_lost_ ABSL_GUARDED_BY(mutex_) = false;
  bool stop_ ABSL_GUARDED_BY(mutex_) = false;

  std::vector<std::thread> threads_;  // set at construction; last, because they use all of the above
};

Scheduler::Impl::Impl(Engine& engine, Admission& admission, const SchedulerOptions& options, const TimeSource& time,
                      SchedulerObserver& observer)
    : engine_(engine),
      admission_(admission),
      time_(time),
      observer_(observer),
      limits_(LimitsOf(options, engine.info())),
      inline_limit_(options.inline_limit),
      busy_poll_(options.busy_poll),
      book_(limits_.max_rows, options.tenant_weights, StagingOf(options, limits_, engine.info())),
      places_(std::max(1, engine.info().concurrency)) {
  for (int i = std::max(1, engine.info().concurrency); i > 0; --i) threads_.emplace_back([this] { RunTurns(); });
}

Scheduler::Impl::~Impl() {
  FinishedJobs dropped;
  {
    MutexLock lock(mutex_);
    stop_ = true;
    refusal_ = absl::UnavailableError("the server is shutting down");
    book_.DropWaiting(refusal_, dropped);
    PublishLoad();
    rows_wait_ = true;  // ends polling
  }
  work_.NotifyAll();
  Deliver(dropped);
  for (std::thread& thread : threads_) thread.join();
}

Scheduler::JobId Scheduler::Impl::Submit(std::unique_ptr<Job> job) {
  const Clock::time_point now = time_.Now();
  std::unique_ptr<JobEntry> entry = MakeEntry(std::move(job), now);
  FinishedJobs refused;
  JobId id = 0;  // never given to a job: a refused one cannot be cancelled
  Turn turn;
  bool run = false, wake = false;
  {
    MutexLock lock(mutex_);
    ++undelivered_;
    if (refusal_.ok()) {
      id = book_.Add(std::move(entry));
      std::optional<Clock::time_point> look_again;
      run = places_ > 0 && RunsWithin(inline_limit_) && Begin(turn, look_again);
      if (!run) PublishLoad();
      if (!run && MustWait()) turn.ahead = book_.Grant(now);
      wake = ShouldWake();
    } else {
      refused.push_back({.job = std::move(entry->job), .status = refusal_});
    }
  }
  if (wake) work_.NotifyOne();
  if (run) {
    RunInline(turn);
  } else {
    StageAhead(turn.ahead);
  }
  Deliver(refused);
  return id;
}

void Scheduler::Impl::RunInline(Turn& first) {
  const Clock::time_point until = time_.Now() + inline_limit_;
  Do(first);
  for (bool more = true; more;) {
    Turn turn;
    bool wake = false;
    {
      MutexLock lock(mutex_);
      ++places_;
      std::optional<Clock::time_point> look_again;
      more = !stop_ && RunsWithin(until - time_.Now()) && Begin(turn, look_again);
      wake = ShouldWake();
    }
    if (wake) work_.NotifyOne();
    if (more) Do(turn);
  }
}

bool Scheduler::Impl::RunsWithin(Clock::duration limit) const {
  if (inline_limit_.count() == 0) return false;
  const std::optional<std::chrono::microseconds> expected =
      admission_.ExpectBatch(std::min(book_.load().queued.rows, limits_.max_rows));
  return expected.has_value() && *expected <= limit;
}

bool Scheduler::Impl::Begin(Turn& turn, std::optional<Clock::time_point>& look_again) {
  const Clock::time_point now = time_.Now();
  const ServiceTime service_time = admission_.service_time();
  BatchLimits limits = limits_;
  limits.row_seconds = service_time.RowSeconds(limits.max_rows);
  const BatchDecision decision = Decide(book_.queues(), limits, now);
  look_again = decision.look_again;
  if (decision.expired.empty() && decision.batch.empty()) return false;
  turn.batch = book_.Begin(decision, service_time, now, turn.expired);
  if (!turn.batch.pieces.empty()) running_since_.push_back(now);
  turn.ahead = book_.Grant(now);
  --places_;
  PublishLoad();
  return true;
}

void Scheduler::Impl::Do(Turn& turn) {
  Deliver(turn.expired);
  StageAhead(turn.ahead);
  if (!turn.batch.pieces.empty()) Run(turn.batch);
}

void Scheduler::Impl::StageAhead(const std::vector<StageOrder>& orders) {
  for (const StageOrder& order : orders) {
    absl::StatusOr<StagedRowsPtr> copy = engine_.StageRows(order.rows, order.first, order.bytes);
    const StagedRowsPtr begun = copy.ok() ? *std::move(copy) : nullptr;
    MutexLock lock(mutex_);  // not held any more when a copy that nobody wants is dropped
    book_.Begun(order, begun);
  }
}

void Scheduler::Impl::Cancel(JobId id) {
  FinishedJobs dropped;
  {
    MutexLock lock(mutex_);
    book_.Drop(id, absl::CancelledError("cancelled by the caller"), dropped);
    PublishLoad();
  }
  Deliver(dropped);
}

bool Scheduler::Impl::Drain(Clock::time_point deadline) {
  MutexLock lock(mutex_);
  if (refusal_.ok()) refusal_ = absl::UnavailableError("the server is draining and takes no new requests");
  while (undelivered_ > 0) {
    const Clock::time_point now = time_.Now();
    if (now >= deadline) return false;
    delivered_.WaitUntil(mutex_, deadline == Clock::time_point::max() ? deadline : Clock::now() + (deadline - now));
  }
  return true;
}

std::vector<QueueStats> Scheduler::Impl::Stats() const {
  std::vector<QueueStats> stats;
  const Clock::time_point now = time_.Now();
  MutexLock lock(mutex_);
  for (const auto& [layer, queue] : book_.queues()) {
    stats.push_back({.layer = layer->spec().Name(),
                     .rows = queue.rows(),
                     .oldest_age_seconds = Seconds(now - queue.oldest().arrival)});
  }
  return stats;
}

void Scheduler::Impl::RunTurns() {
  while (true) {
    Turn turn;  // of this turn only: an idle thread must not keep the last layer alive
    if (!NextTurn(turn)) return;
    Do(turn);
    MutexLock lock(mutex_);
    ++places_;
  }
}

void Scheduler::Impl::PollForWork() {
  if (busy_poll_.count() == 0 || polling_.exchange(true)) return;
  const Clock::time_point until = Clock::now() + busy_poll_;
  while (!rows_wait_.load(std::memory_order_relaxed) && Clock::now() < until) std::this_thread::yield();
  polling_ = false;
}

bool Scheduler::Impl::NextTurn(Turn& turn) {
  PollForWork();
  bool wake_another = false;
  {
    MutexLock lock(mutex_);
    while (true) {
      if (stop_) return false;
      std::optional<Clock::time_point> look_again;
      if (places_ > 0 && Begin(turn, look_again)) break;
      ++idle_;
      if (look_again.has_value()) {
        work_.WaitUntil(mutex_, Clock::now() + (*look_again - time_.Now()));
      } else {
        work_.Wait(mutex_);
      }
      --idle_;
    }
    wake_another = ShouldWake();
  }
  if (wake_another) work_.NotifyOne();
  return true;
}

void Scheduler::Impl::Run(RunningBatch& batch) {
  const Layer& layer = *batch.layer;
  const absl::Status lost = RunBatch(engine_, layer, absl::MakeSpan(batch.pieces),
                                     [&](std::int64_t rows, std::int64_t requests, const StageTimes& stages) {
                                       observer_.BatchDone(layer, rows, requests, stages);
                                     });
  const Clock::time_point now = time_.Now();
  bool all_ok = true;
  for (Piece& piece : batch.pieces) {
    all_ok = all_ok && piece.status.ok();
    if (absl::IsResourceExhausted(piece.status)) {
      piece.status = RetryLater(piece.status.message(), admission_.RetryHint());
    }
  }
  FinishedJobs finished;
  {
    MutexLock lock(mutex_);
    // Of two batches that overlapped, the later is charged from the end of the earlier: what a waiting request wants to
    // know is how fast work goes away. Batches that were tried again tell nothing.
    const Clock::time_point charged_from = std::max(batch.start, last_batch_end_);
    last_batch_end_ = std::max(now, last_batch_end_);
    if (all_ok) admission_.ObserveBatch(batch.rows, Seconds(last_batch_end_ - charged_from));
    book_.End(batch, now, finished);
    running_since_.erase(std::find(running_since_.begin(), running_since_.end(), batch.start));
    PublishLoad();
  }
  if (!lost.ok()) LoseEngine(lost, /*abandon=*/false);
  Deliver(finished);
}

Clock::duration Scheduler::Impl::LongestRun() const {
  const Clock::time_point now = time_.Now();
  MutexLock lock(mutex_);
  const auto oldest = std::min_element(running_since_.begin(), running_since_.end());
  return oldest == running_since_.end() ? Clock::duration::zero() : now - *oldest;
}

void Scheduler::Impl::LoseEngine(const absl::Status& reason, bool abandon) {
  FinishedJobs dropped;
  {
    MutexLock lock(mutex_);
    if (std::exchange(engine_lost_, true)) return;
    refusal_ = absl::UnavailableError(absl::StrCat("the engine is lost: ", reason.message()));
    book_.DropWaiting(reason, dropped);
    if (abandon) book_.Abandon(reason, dropped);
    PublishLoad();
  }
  observer_.EngineLost(reason);
  Deliver(dropped);
}

void Scheduler::Impl::Deliver(FinishedJobs& finished) {
  if (finished.empty()) return;
  for (FinishedJob& job : finished) {
    if (!job.status.ok()) observer_.Dropped(*job.job->layer, job.status);
    const auto done = std::move(job.job->done);  // `done` may destroy the job
    done(std::move(job.job), std::move(job.status), job.report);
  }
  MutexLock lock(mutex_);
  undelivered_ -= static_cast<std::int64_t>(finished.size());
  if (undelivered_ == 0) delivered_.NotifyAll();
}

Scheduler::Scheduler(Engine& engine, Admission& admission, const SchedulerOptions& options, const TimeSource& time,
                     SchedulerObserver& observer)
    : impl_(std::make_unique<Impl>(engine, admission, options, time, observer)) {}

Scheduler::~Scheduler() = default;

Scheduler::JobId Scheduler::Submit(std::unique_ptr<Job> job) { return impl_->Submit(std::move(job)); }
void Scheduler::Cancel(JobId id) { impl_->Cancel(id); }
bool Scheduler::Drain(Clock::time_point deadline) { return impl_->Drain(deadline); }
Clock::duration Scheduler::LongestRun() const { return impl_->LongestRun(); }
void Scheduler::AbandonEngine(const absl::Status& reason) { impl_->LoseEngine(reason, /*abandon=*/true); }
std::vector<QueueStats> Scheduler::Stats() const { return impl_->Stats(); }

}  // namespace expertd
