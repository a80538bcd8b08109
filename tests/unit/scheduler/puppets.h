// A clock that stands still, an engine on strings, and callers that remember: what scheduler tests are played with.
// Every row has one f32 element; a job's rows are tag * 1000 + row, and the engine answers with the double.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "server/job.h"
#include "server/scheduler/scheduler.h"

namespace expertd {

class FakeClock : public TimeSource {
 public:
  Clock::time_point Now() const override { return Clock::time_point(Clock::duration(ticks_)); }
  void Advance(Clock::duration by) { ticks_ += by.count(); }

 private:
  // Far from 0, so that times before the start are valid too; a multiple of every ageing step in use.
  std::atomic<Clock::rep> ticks_{Clock::duration(std::chrono::hours(1000)).count()};
};

LayerPtr MakeLayer(std::int64_t layer);

// One segment as the engine saw it.
struct Ran {
  int tag = 0;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  bool staged = false;  // with a copy that holds them

  bool operator==(const Ran&) const = default;
  friend std::ostream& operator<<(std::ostream& out, const Ran& ran) {
    return out << "{tag " << ran.tag << ", rows " << ran.first_row << "+" << ran.rows
               << (ran.staged ? " staged}" : "}");
  }
};
using RanBatch = std::vector<Ran>;

class PuppetEngine : public Engine {
 public:
  explicit PuppetEngine(int concurrency = 1, std::int64_t max_batch_rows = 1 << 20);

  // From now on each Run waits, after it was recorded, until it is let go.
  void Hold();
  void LetGo(int runs);
  void LetAllGo();
  // Until so many Runs have begun, counted from the start.
  void AwaitRuns(std::size_t runs);
  std::vector<RanBatch> batches() const;

  // Set before the scheduler starts: what Run returns instead of computing, and what it does before it ends.
  std::function<absl::Status(const RanBatch&)> verdict;
  std::function<void()> before_end;

  // From now on it stages whatever it is asked to; before the scheduler starts.
  void Stage() { info_.stage_from_bytes = 1; }
  // As they were begun; refused ones not.
  std::vector<Ran> staged() const;
  // Copies that somebody has.
  int copies() const { return copies_; }
  // Set before the scheduler starts: called by StageRows; an error refuses.
  std::function<absl::Status()> before_stage;

  const EngineInfo& info() const override { return info_; }
  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override;
  absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) override;
  absl::StatusOr<StagedRowsPtr> StageRows(std::shared_ptr<const RowBuffer> rows, std::size_t first,
                                          std::size_t bytes) override;
  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) override;

 private:
  EngineInfo info_;
  std::atomic<int> copies_{0};
  mutable Mutex mutex_;
  CondVar changed_;
  std::vector<RanBatch> batches_ ABSL_GUARDED_BY(mutex_);
  std::vector<Ran> staged_ ABSL_GUARDED_BY(mutex_);
  bool holding_ ABSL_GUARDED_BY(mutex_) = false;
  int let_go_ ABSL_GUARDED_BY(mutex_) = 0;
  int running_ ABSL_GUARDED_BY(mutex_) = 0;
};

struct Outcome {
  absl::Status status;
  BatchReport report;
  bool output_right = false;  // every row is the double of its input
};

// Makes jobs and collects how they ended.
class Callers {
 public:
  struct Wish {
    LayerPtr layer;
    std::int64_t rows = 1;
    std::string tenant = kDefaultTenant;
    int priority = 0;
    Clock::time_point deadline = Clock::time_point::max();
    std::function<void()> then;  // called after the outcome was recorded, from within `done`
  };

  std::unique_ptr<Job> MakeJob(int tag, Wish wish);
  // Blocks until the job has ended.
  Outcome Await(int tag);
  // Whether it has ended by now.
  bool Ended(int tag) const;
  // Tags in the order in which they ended.
  std::vector<int> order() const;

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  std::map<int, Outcome> outcomes_ ABSL_GUARDED_BY(mutex_);
  std::vector<int> order_ ABSL_GUARDED_BY(mutex_);
};

class RecordingObserver : public SchedulerObserver {
 public:
  void BatchDone(const Layer& layer, std::int64_t rows, std::int64_t requests, const StageTimes& stages) override;
  void Dropped(const Layer& layer, const absl::Status& reason) override;
  void EngineLost(const absl::Status& reason) override;

  std::atomic<std::int64_t> rows{0};
  std::atomic<int> batches{0};
  std::atomic<int> dropped{0};
  std::atomic<int> lost{0};
};

}  // namespace expertd
