// The scheduler on a device: requests that are staged, cut, cancelled and expire, and the bits of those that are
// answered.
#include <atomic>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#include "kernels/cuda/engine/cuda_engine.h"
#include "server/scheduler/scheduler.h"
#include "tests/contract/harness.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

constexpr std::int64_t kD = 512, kRows = 700;  // 700 KiB: worth a copy
constexpr std::size_t kBytes = kRows * kD * 2;
constexpr int kShapes = 4;
constexpr int kMostInFlight = 40;

class StagedServiceGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    auto engine = MakeCudaEngine({.workspace_bytes = 256 << 20, .staging_bytes = 8 << 20});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
    auto layer = engine_->LoadLayer(*MakeRandomLayer(SimpleSpec(kD, /*num_experts=*/8, /*experts_per_token=*/2, 256)));
    ASSERT_TRUE(layer.ok()) << layer.status();
    layer_ = *std::move(layer);
    for (int shape = 0; shape < kShapes; ++shape) {
      inputs_.push_back(Rows::Random(kRows, kD, DType::kBF16, static_cast<std::uint64_t>(shape)));
      wanted_.push_back(Rows::Poisoned(kRows, kD, DType::kBF16));
      const Segment alone = {.rows = kRows, .input = inputs_.back().row(0), .output = wanted_.back().row(0)};
      ASSERT_EQ(engine_->Run(*layer_, {&alone, 1}, nullptr), absl::OkStatus());
    }
  }

  std::unique_ptr<Job> MakeJob(int shape) {
    ++made_;
    auto job = std::make_unique<Job>();
    job->layer = layer_;
    job->rows = kRows;
    job->input = engine_->AcquireRows(kBytes).value();
    job->output = engine_->AcquireRows(kBytes).value();
    std::memcpy(job->input.data(), inputs_[static_cast<std::size_t>(shape)].row(0), kBytes);
    job->done = [this, shape](std::unique_ptr<Job> done, const absl::Status& status, const BatchReport&) {
      if (status.ok()) {
        ++answered_;
        wrong_ += std::memcmp(done->output.data(), wanted_[static_cast<std::size_t>(shape)].row(0), kBytes) != 0;
      } else {
        ++(absl::IsCancelled(status) || absl::IsDeadlineExceeded(status) ? ended_ : wrong_);
      }
    };
    return job;
  }

  std::unique_ptr<Engine> engine_;
  LayerPtr layer_;
  std::vector<Rows> inputs_, wanted_;
  std::atomic<int> made_{0}, answered_{0}, ended_{0}, wrong_{0};
};

TEST_F(StagedServiceGpuTest, AnswersAreRightAndAllMemoryComesBack) {
  const int jobs = SmallTests() ? 20 : 400;
  const auto admission = std::make_shared<Admission>(AdmissionLimits{});
  const TimeSource time;
  SchedulerObserver observer;
  Scheduler scheduler(*engine_, *admission, {.max_batch_rows = 1500}, time, observer);
  std::vector<std::thread> submitters;
  for (int t = 0; t < 3; ++t) {
    submitters.emplace_back([&, t] {
      Random random(static_cast<std::uint64_t>(t) + 1);
      for (int i = 0; i < jobs; ++i) {
        while (made_ - answered_ - ended_ - wrong_ > kMostInFlight) std::this_thread::yield();
        auto job = MakeJob(static_cast<int>(random.Below(kShapes)));
        job->priority = static_cast<int>(random.Below(10));
        if (i % 7 == 0) job->deadline = Clock::now() + std::chrono::microseconds(random.Below(2000));
        const Scheduler::JobId id = scheduler.Submit(std::move(job));
        if (i % 3 == 0) scheduler.Cancel(id);  // its copy has just begun
      }
    });
  }
  for (std::thread& thread : submitters) thread.join();
  ASSERT_TRUE(scheduler.Drain(Clock::now() + std::chrono::minutes(1)));
  EXPECT_EQ(wrong_, 0);
  EXPECT_EQ(answered_ + ended_, 3 * jobs);
  EXPECT_GE(answered_, jobs);
  EXPECT_GT(engine_->staging().rows_on_arrival, 0);
  // The last batch drops its copies when its callers have theirs.
  for (int i = 0; i < 1000 && engine_->staging().bytes > 0; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_EQ(engine_->staging().bytes, 0);
}

}  // namespace
}  // namespace expertd::testing
