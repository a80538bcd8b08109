#include "tests/unit/scheduler/puppets.h"

#include <gtest/gtest.h>

#include <algorithm>

namespace expertd {
namespace {

constexpr int kRowsPerTag = 1000;

class PuppetLayer : public Layer {
 public:
  explicit PuppetLayer(std::int64_t layer) {
    spec_.model = "puppet";
    spec_.layer = layer;
    spec_.hidden_size = 1;
    spec_.experts_per_token = 2;
  }
  const LayerSpec& spec() const override { return spec_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::int64_t weight_bytes() const override { return 0; }
  absl::string_view path() const override { return "puppet"; }

 private:
  LayerSpec spec_;
  std::string fingerprint_ = "puppet";
};

RowBuffer MakeRows(std::int64_t rows) {
  auto* data = new float[static_cast<std::size_t>(rows)]();
  const std::size_t bytes = static_cast<std::size_t>(rows) * sizeof(float);
  return RowBuffer(reinterpret_cast<std::byte*>(data), bytes, bytes,
                   [data](std::byte*, std::size_t) { delete[] data; });
}

float* Floats(const RowBuffer& rows) { return reinterpret_cast<float*>(rows.data()); }

class PuppetCopy : public StagedRows {
 public:
  PuppetCopy(const float* rows, std::int64_t count, std::atomic<int>& copies)
      : from_(rows), rows_(rows, rows + count), copies_(copies) {
    ++copies_;
  }
  ~PuppetCopy() override { --copies_; }
  // Whether it holds what lies there, and it is the same.
  bool Holds(const float* rows, std::int64_t count) const {
    return rows >= from_ && rows + count <= from_ + rows_.size() &&
           std::equal(rows, rows + count, &rows_[rows - from_]);
  }

 private:
  const float* const from_;
  const std::vector<float> rows_;
  std::atomic<int>& copies_;
};

Ran Describe(const float* rows, std::int64_t count, bool staged) {
  const int first = static_cast<int>(*rows);
  return {.tag = first / kRowsPerTag, .first_row = first % kRowsPerTag, .rows = count, .staged = staged};
}

RanBatch Describe(absl::Span<const Segment> segments) {
  RanBatch batch;
  for (const Segment& segment : segments) {
    const auto* input = static_cast<const float*>(segment.input);
    const auto* copy = static_cast<const PuppetCopy*>(segment.staged);
    batch.push_back(Describe(input, segment.rows, copy != nullptr && copy->Holds(input, segment.rows)));
  }
  return batch;
}

void Double(const Segment& segment) {
  const float* in = static_cast<const float*>(segment.input);
  float* out = static_cast<float*>(segment.output);
  for (std::int64_t row = 0; row < segment.rows; ++row) out[row] = 2 * in[row];
}

bool OutputRight(const Job& job) {
  if (!job.output) return false;  // an abandoned job comes without buffers
  for (std::int64_t row = 0; row < job.rows; ++row) {
    if (Floats(job.output)[row] != 2 * Floats(job.input)[row]) return false;
  }
  return true;
}

}  // namespace

LayerPtr MakeLayer(std::int64_t layer) { return std::make_shared<PuppetLayer>(layer); }

PuppetEngine::PuppetEngine(int concurrency, std::int64_t max_batch_rows) {
  info_.device = "puppet";
  info_.concurrency = concurrency;
  info_.max_batch_rows = max_batch_rows;
}

void PuppetEngine::Hold() {
  MutexLock lock(mutex_);
  holding_ = true;
}

void PuppetEngine::LetGo(int runs) {
  MutexLock lock(mutex_);
  let_go_ += runs;
  changed_.NotifyAll();
}

void PuppetEngine::LetAllGo() {
  MutexLock lock(mutex_);
  holding_ = false;
  changed_.NotifyAll();
}

void PuppetEngine::AwaitRuns(std::size_t runs) {
  MutexLock lock(mutex_);
  while (batches_.size() < runs) changed_.Wait(mutex_);
}

std::vector<RanBatch> PuppetEngine::batches() const {
  MutexLock lock(mutex_);
  return batches_;
}

std::vector<Ran> PuppetEngine::staged() const {
  MutexLock lock(mutex_);
  return staged_;
}

absl::StatusOr<LayerPtr> PuppetEngine::LoadLayer(const LayerSource& source) {
  return absl::UnimplementedError("a puppet loads nothing");
}

absl::StatusOr<RowBuffer> PuppetEngine::AcquireRows(std::size_t bytes) {
  return absl::UnimplementedError("a puppet has no pool");
}

absl::StatusOr<StagedRowsPtr> PuppetEngine::StageRows(std::shared_ptr<const RowBuffer> rows, std::size_t first,
                                                      std::size_t bytes) {
  if (before_stage) {
    if (absl::Status status = before_stage(); !status.ok()) return status;
  }
  const auto* data = reinterpret_cast<const float*>(rows->data() + first);
  const auto count = static_cast<std::int64_t>(bytes / sizeof(float));
  MutexLock lock(mutex_);
  staged_.push_back(Describe(data, count, true));
  return std::make_shared<PuppetCopy>(data, count, copies_);
}

absl::Status PuppetEngine::Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) {
  const RanBatch batch = Describe(segments);
  {
    MutexLock lock(mutex_);
    batches_.push_back(batch);
    EXPECT_LE(++running_, info_.concurrency);
    changed_.NotifyAll();
    while (holding_ && let_go_ == 0) changed_.Wait(mutex_);
    if (holding_) --let_go_;
    --running_;
  }
  if (before_end) before_end();
  if (verdict) {
    if (absl::Status status = verdict(batch); !status.ok()) return status;
  }
  for (const Segment& segment : segments) Double(segment);
  *times = {.stage_in = 1, .route = 2, .gemm = 3, .combine = 4, .stage_out = 5};
  return absl::OkStatus();
}

std::unique_ptr<Job> Callers::MakeJob(int tag, Wish wish) {
  auto job = std::make_unique<Job>();
  job->layer = std::move(wish.layer);
  job->rows = wish.rows;
  job->input_dtype = job->output_dtype = DType::kF32;
  job->tenant = wish.tenant;
  job->priority = wish.priority;
  job->deadline = wish.deadline;
  job->input = MakeRows(wish.rows);
  job->output = MakeRows(wish.rows);
  for (std::int64_t row = 0; row < wish.rows; ++row) {
    Floats(job->input)[row] = static_cast<float>(tag * kRowsPerTag + row);
  }
  job->done = [this, tag, then = std::move(wish.then)](std::unique_ptr<Job> job, absl::Status status,
                                                       const BatchReport& report) {
    {
      MutexLock lock(mutex_);
      const bool first =
          outcomes_.emplace(tag, Outcome{.status = status, .report = report, .output_right = OutputRight(*job)}).second;
      EXPECT_TRUE(first) << "job " << tag << " was completed twice";
      order_.push_back(tag);
      changed_.NotifyAll();
    }
    if (then) then();
  };
  return job;
}

Outcome Callers::Await(int tag) {
  MutexLock lock(mutex_);
  while (outcomes_.count(tag) == 0) changed_.Wait(mutex_);
  return outcomes_.at(tag);
}

bool Callers::Ended(int tag) const {
  MutexLock lock(mutex_);
  return outcomes_.count(tag) > 0;
}

std::vector<int> Callers::order() const {
  MutexLock lock(mutex_);
  return order_;
}

void RecordingObserver::BatchDone(const Layer& layer, std::int64_t batch_rows, std::int64_t requests,
                                  const StageTimes& stages) {
  rows += batch_rows;
  ++batches;
}

void RecordingObserver::Dropped(const Layer& layer, const absl::Status& reason) { ++dropped; }

void RecordingObserver::EngineLost(const absl::Status& reason) { ++lost; }

}  // namespace expertd
