// What the scheduler itself costs: an engine that computes nothing, and jobs without buffers.
//
//   scheduler_bench                       all of them
//   scheduler_bench --benchmark_filter=Burst
//
// Admit and Burst are bookkeeping: read submit_ns, run_ns and cpu_ns. RoundTrip adds the two wake-ups of a lone
// caller: there and back.
#include <benchmark/benchmark.h>

#include <atomic>
#include <chrono>
#include <ctime>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/base/mutex.h"
#include "server/job.h"
#include "server/scheduler/scheduler.h"

namespace expertd {
namespace {

class NoLayer : public Layer {
 public:
  NoLayer() { spec_.hidden_size = 1; }
  const LayerSpec& spec() const override { return spec_; }
  const std::string& fingerprint() const override { return spec_.model; }
  std::int64_t weight_bytes() const override { return 0; }
  absl::string_view path() const override { return "none"; }

 private:
  LayerSpec spec_;
};

// A gate that threads pass while it is open.
class Gate {
 public:
  void Set(bool open) {
    MutexLock lock(mutex_);
    open_ = open;
    changed_.NotifyAll();
  }
  void Pass() {
    MutexLock lock(mutex_);
    while (!open_) changed_.Wait(mutex_);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
};

class NoEngine : public Engine {
 public:
  NoEngine() { info_.max_batch_rows = 1 << 20; }
  const EngineInfo& info() const override { return info_; }
  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource&) override { return absl::UnimplementedError("none"); }
  absl::StatusOr<RowBuffer> AcquireRows(std::size_t) override { return absl::UnimplementedError("none"); }
  absl::Status Run(const Layer&, absl::Span<const Segment>, StageTimes*) override {
    gate.Pass();
    return absl::OkStatus();
  }

  Gate gate;

 private:
  EngineInfo info_;
};

// Counts completions, and wakes its owner at the last one expected. Keeps the jobs, so that freeing them is not part of
// what is measured.
class Caller {
 public:
  explicit Caller(std::size_t jobs) { done_jobs_.reserve(jobs); }

  std::unique_ptr<Job> MakeJob(const LayerPtr& layer, std::int64_t rows) {
    auto job = std::make_unique<Job>();
    job->layer = layer;
    job->rows = rows;
    job->done = [this](std::unique_ptr<Job> job, absl::Status, const BatchReport&) {
      done_jobs_.push_back(std::move(job));
      if (done_jobs_.size() != expected_) return;
      awaited_.store(true, std::memory_order_release);
      awaited_.notify_one();
    };
    return job;
  }

  // Before the last of so many jobs, counted from the start, is submitted.
  void Expect(std::size_t jobs) {
    awaited_.store(false);
    expected_ = jobs;
  }
  void Await() { awaited_.wait(false, std::memory_order_acquire); }

 private:
  std::vector<std::unique_ptr<Job>> done_jobs_;
  std::atomic<std::size_t> expected_{0};
  std::atomic<bool> awaited_{false};
};

struct Rig {
  explicit Rig(std::int64_t max_batch_rows, std::chrono::microseconds busy_poll = {})
      : scheduler(std::make_unique<Scheduler>(
            engine, *admission, SchedulerOptions{.max_batch_rows = max_batch_rows, .busy_poll = busy_poll}, time,
            observer)) {
    for (int i = 0; i < 61; ++i) layers.push_back(std::make_shared<NoLayer>());
  }
  NoEngine engine;
  std::shared_ptr<Admission> admission = std::make_shared<Admission>(AdmissionLimits{});
  TimeSource time;
  SchedulerObserver observer;
  std::vector<LayerPtr> layers;
  std::unique_ptr<Scheduler> scheduler;
};

void Admit(benchmark::State& state) {
  Rig rig(4096);
  rig.admission->ObserveBatch(16, 1e-3);
  const Clock::time_point now = Clock::now();
  for (auto _ : state) {
    benchmark::DoNotOptimize(rig.admission->Admit(16, 65536, now, now + std::chrono::seconds(1)));
  }
}
BENCHMARK(Admit);

double Nanoseconds(Clock::duration duration) { return std::chrono::duration<double, std::nano>(duration).count(); }

// So many one-row jobs for so many layers, submitted while the engine is busy, then run. submit_ns and run_ns are per
// job; run is everything from the decision to the return of `done`.
void Burst(benchmark::State& state) {
  const std::size_t jobs = static_cast<std::size_t>(state.range(0));
  const std::size_t layers = static_cast<std::size_t>(state.range(1));
  Clock::duration submitting{0}, running{0};
  std::clock_t processor = 0;
  for (auto _ : state) {
    Caller caller(jobs + 1);
    caller.Expect(jobs + 1);
    Rig rig(/*max_batch_rows=*/256);
    std::vector<std::unique_ptr<Job>> made;
    for (std::size_t i = 0; i < jobs; ++i) made.push_back(caller.MakeJob(rig.layers[i % layers], 1));
    rig.engine.gate.Set(false);
    rig.scheduler->Submit(caller.MakeJob(rig.layers[0], 1));
    while (!rig.scheduler->Stats().empty()) std::this_thread::yield();  // until it runs

    const std::clock_t processor_start = std::clock();
    const Clock::time_point start = Clock::now();
    for (std::unique_ptr<Job>& job : made) rig.scheduler->Submit(std::move(job));
    const Clock::time_point submitted = Clock::now();
    rig.engine.gate.Set(true);
    caller.Await();
    const Clock::time_point end = Clock::now();
    processor += std::clock() - processor_start;
    rig.scheduler.reset();
    submitting += submitted - start;
    running += end - submitted;
    state.SetIterationTime(std::chrono::duration<double>(end - start).count());
  }
  const double total_jobs = static_cast<double>(jobs) * static_cast<double>(state.iterations());
  state.counters["submit_ns"] = Nanoseconds(submitting) / total_jobs;
  state.counters["run_ns"] = Nanoseconds(running) / total_jobs;
  state.counters["cpu_ns"] = static_cast<double>(processor) * (1e9 / CLOCKS_PER_SEC) / total_jobs;
}
BENCHMARK(Burst)->ArgNames({"jobs", "layers"})->ArgsProduct({{64, 1024, 16384}, {1, 61}})->UseManualTime();

void RoundTrip(benchmark::State& state) {
  Caller caller(1 << 20);
  Rig rig(4096, std::chrono::microseconds(state.range(0)));
  std::size_t sent = 0;
  for (auto _ : state) {
    caller.Expect(++sent);
    rig.scheduler->Submit(caller.MakeJob(rig.layers[0], 1));
    caller.Await();
  }
}
BENCHMARK(RoundTrip)->ArgName("busy_poll_us")->Arg(0)->Arg(1000)->UseRealTime();

}  // namespace
}  // namespace expertd

BENCHMARK_MAIN();
