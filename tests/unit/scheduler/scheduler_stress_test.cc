// Many threads submit, cancel and look on while several runners work: every job ends exactly once, with an answer that
// is right or a reason that fits. Meant for ThreadSanitizer.
#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "server/scheduler/scheduler.h"
#include "tests/unit/scheduler/puppets.h"

namespace expertd {
namespace {

constexpr int kSubmitters = 4;
constexpr int kJobsPerSubmitter = 1000;
constexpr int kLayers = 3;

// What one submitter does: jobs of 1 to 9 rows for any layer, of any priority; every fifth has a deadline that may
// pass, every third is cancelled, some at once and some later.
void SubmitJobs(int submitter, Scheduler& scheduler, Callers& callers, const std::vector<LayerPtr>& layers) {
  std::mt19937 random(static_cast<unsigned>(submitter));
  std::vector<Scheduler::JobId> to_cancel;
  for (int i = 0; i < kJobsPerSubmitter; ++i) {
    Callers::Wish wish{.layer = layers[random() % layers.size()],
                       .rows = 1 + static_cast<std::int64_t>(random() % 9),
                       .priority = static_cast<int>(random() % 10)};
    if (i % 5 == 0) wish.deadline = Clock::now() + std::chrono::microseconds(random() % 300);
    const Scheduler::JobId id = scheduler.Submit(callers.MakeJob(submitter * kJobsPerSubmitter + i, std::move(wish)));
    if (i % 3 == 0) to_cancel.push_back(id);
    if (random() % 4 == 0) {
      for (const Scheduler::JobId cancelled : to_cancel) scheduler.Cancel(cancelled);
      to_cancel.clear();
    }
  }
}

bool FitsItsReason(const Outcome& outcome, int index) {
  switch (outcome.status.code()) {
    case absl::StatusCode::kOk:
      return outcome.output_right && index % 100 != 7;
    case absl::StatusCode::kCancelled:
      return index % 3 == 0;
    case absl::StatusCode::kDeadlineExceeded:
      return index % 5 == 0;
    case absl::StatusCode::kUnknown:
      return index % 100 == 7;
    default:
      return false;
  }
}

// With and without batches that submitters run themselves, threads that poll, and rows that go ahead.
struct Hops {
  std::chrono::microseconds inline_limit, busy_poll;
  bool stages = false;
};
class SchedulerStressTest : public ::testing::TestWithParam<Hops> {};

INSTANTIATE_TEST_SUITE_P(Inline, SchedulerStressTest,
                         ::testing::Values(Hops{}, Hops{.inline_limit = std::chrono::microseconds(10'000)},
                                           Hops{.busy_poll = std::chrono::microseconds(100)}, Hops{.stages = true}));

TEST_P(SchedulerStressTest, EveryJobEndsOnceAndRight) {
  const TimeSource time;
  PuppetEngine engine(/*concurrency=*/3);
  if (GetParam().stages) engine.Stage();
  engine.verdict = [](const RanBatch& batch) {
    for (const Ran& ran : batch) {
      if (ran.tag % kJobsPerSubmitter % 100 == 7) return absl::UnknownError("culprit");
    }
    return absl::OkStatus();
  };
  Admission admission({});
  RecordingObserver observer;
  Callers callers;
  std::vector<LayerPtr> layers;
  for (int layer = 0; layer < kLayers; ++layer) layers.push_back(MakeLayer(layer));

  Scheduler scheduler(engine, admission,
                      {.max_batch_rows = 6, .inline_limit = GetParam().inline_limit, .busy_poll = GetParam().busy_poll},
                      time, observer);
  std::atomic<bool> submitting{true};
  std::thread onlooker([&] {
    while (submitting) {
      scheduler.Stats();
      admission.ExpectedWait();
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> submitters;
  for (int i = 0; i < kSubmitters; ++i) {
    submitters.emplace_back([&, i] { SubmitJobs(i, scheduler, callers, layers); });
  }
  for (std::thread& thread : submitters) thread.join();
  submitting = false;
  onlooker.join();
  ASSERT_TRUE(scheduler.Drain(Clock::now() + std::chrono::minutes(2)));

  EXPECT_EQ(engine.staged().empty(), !GetParam().stages);
  int answered = 0;
  for (int tag = 0; tag < kSubmitters * kJobsPerSubmitter; ++tag) {
    ASSERT_TRUE(callers.Ended(tag)) << tag;
    const Outcome outcome = callers.Await(tag);
    EXPECT_TRUE(FitsItsReason(outcome, tag % kJobsPerSubmitter)) << tag << ": " << outcome.status;
    answered += outcome.status.ok() ? 1 : 0;
  }
  EXPECT_GT(answered, kSubmitters * kJobsPerSubmitter / 4);
  EXPECT_EQ(admission.ExpectedWait(), std::chrono::microseconds(0));
}

TEST_P(SchedulerStressTest, DestructionUnderLoadCompletesEveryJob) {
  const TimeSource time;
  Admission admission({});
  RecordingObserver observer;
  const LayerPtr layer = MakeLayer(0);
  for (int round = 0; round < 50; ++round) {
    PuppetEngine engine(/*concurrency=*/2);
    if (GetParam().stages) engine.Stage();
    Callers callers;
    {
      Scheduler scheduler(
          engine, admission,
          {.max_batch_rows = 3, .inline_limit = GetParam().inline_limit, .busy_poll = GetParam().busy_poll}, time,
          observer);
      for (int tag = 0; tag < 40; ++tag) {
        scheduler.Submit(callers.MakeJob(tag, {.layer = layer, .rows = 1 + tag % 7}));
      }
    }
    EXPECT_EQ(engine.copies(), 0);
    for (int tag = 0; tag < 40; ++tag) {
      ASSERT_TRUE(callers.Ended(tag));
      const Outcome outcome = callers.Await(tag);
      EXPECT_TRUE(outcome.status.ok() ? outcome.output_right : absl::IsUnavailable(outcome.status)) << outcome.status;
    }
  }
}

}  // namespace
}  // namespace expertd
