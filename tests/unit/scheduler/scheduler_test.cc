// Longer than 600 lines because all of it is one fixture: a puppet engine, callers and a clock in the hand of the test.
#include "server/scheduler/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <thread>

#include "server/status.h"
#include "tests/unit/scheduler/puppets.h"

namespace expertd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using ::testing::AnyOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// One runner unless a test starts more.
class SchedulerTest : public ::testing::Test {
 protected:
  ~SchedulerTest() override {
    engine_->LetAllGo();
    scheduler_.reset();
  }

  void Start(const SchedulerOptions& options = {}, int concurrency = 1) {
    if (concurrency != 1) engine_ = std::make_unique<PuppetEngine>(concurrency);
    scheduler_ = std::make_unique<Scheduler>(*engine_, *admission_, options, clock_, observer_);
  }
  Scheduler::JobId Submit(int tag, Callers::Wish wish = {}) {
    if (wish.layer == nullptr) wish.layer = layer_;
    return scheduler_->Submit(callers_.MakeJob(tag, std::move(wish)));
  }
  // Holds the engine with one job running, so that what is submitted next waits.
  Scheduler::JobId Occupy(int tag) {
    engine_->Hold();
    const std::size_t before = engine_->batches().size();
    const Scheduler::JobId id = Submit(tag, {.layer = other_});
    engine_->AwaitRuns(before + 1);
    return id;
  }

  LayerPtr layer_ = MakeLayer(1);
  LayerPtr other_ = MakeLayer(2);
  FakeClock clock_;
  std::unique_ptr<PuppetEngine> engine_ = std::make_unique<PuppetEngine>();
  std::shared_ptr<Admission> admission_ = std::make_shared<Admission>(AdmissionLimits{});
  RecordingObserver observer_;
  Callers callers_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(SchedulerTest, AnIdleEngineRunsARequestAtOnce) {
  Start();
  Submit(1, {.rows = 3});
  const Outcome outcome = callers_.Await(1);
  EXPECT_TRUE(outcome.status.ok());
  EXPECT_TRUE(outcome.output_right);
  EXPECT_EQ(outcome.report.rows, 3);
  EXPECT_EQ(outcome.report.requests, 1);
  EXPECT_EQ(outcome.report.stages.route, 2);
  EXPECT_EQ(observer_.rows, 3);
  EXPECT_EQ(observer_.batches, 1);
  EXPECT_EQ(observer_.dropped, 0);
}

// Who runs what.
class SchedulerInlineTest : public SchedulerTest {
 protected:
  // Returns true when the job was run by the thread that submitted it.
  bool RunsHere(int tag) {
    // A runner may still be at work on the completion when Await returns.
    const auto where = std::make_shared<std::atomic<std::thread::id>>();
    Submit(tag, {.then = [where] { *where = std::this_thread::get_id(); }});
    const bool here = *where == std::this_thread::get_id();
    EXPECT_TRUE(callers_.Await(tag).output_right);
    return here;
  }
  // The runner keeps its place for a moment after a completion.
  void SubmitUntilOneRunsHere() {
    while (!RunsHere(++tag_)) ASSERT_LT(tag_, 100'000);
  }

  int tag_ = 0;
};

TEST_F(SchedulerInlineTest, ShortBatchesRunOnTheThreadThatSubmits) {
  Start({.inline_limit = microseconds(100)});
  EXPECT_FALSE(RunsHere(++tag_)) << "nobody knows yet how long a batch takes";
  SubmitUntilOneRunsHere();
  for (int i = 0; i < 10; ++i) EXPECT_TRUE(RunsHere(++tag_));
}

TEST_F(SchedulerInlineTest, LongBatchesDoNot) {
  engine_->before_end = [&] { clock_.Advance(microseconds(150)); };
  Start({.inline_limit = microseconds(100)});
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(RunsHere(++tag_));
}

TEST_F(SchedulerInlineTest, NorDoesAnyWithoutALimit) {
  Start();
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(RunsHere(++tag_));
}

TEST_F(SchedulerInlineTest, WhatComesMeanwhileIsRunByTheSameThreadAsOneBatch) {
  Start({.inline_limit = microseconds(100)});
  ASSERT_NO_FATAL_FAILURE(SubmitUntilOneRunsHere());
  engine_->Hold();
  const std::size_t before = engine_->batches().size();
  std::thread submitter([&] { EXPECT_TRUE(RunsHere(900'001)); });
  engine_->AwaitRuns(before + 1);
  for (const int tag : {900'002, 900'003}) Submit(tag);  // the engine has no place: queued
  engine_->LetAllGo();
  submitter.join();
  EXPECT_TRUE(callers_.Ended(900'002) && callers_.Ended(900'003)) << "before that Submit returned";
  EXPECT_EQ(engine_->batches().back().size(), 2u);
}

TEST_F(SchedulerInlineTest, ASubmitterGivesBackItsThreadWhenItsTimeIsUp) {
  Start({.inline_limit = microseconds(100)});
  ASSERT_NO_FATAL_FAILURE(SubmitUntilOneRunsHere());
  std::thread::id where;
  Submit(900'001, {.then = [&] {
           clock_.Advance(microseconds(101));
           Submit(900'002, {.then = [&] { where = std::this_thread::get_id(); }});
         }});
  EXPECT_TRUE(callers_.Await(900'002).output_right);
  EXPECT_TRUE(scheduler_->Drain(Clock::time_point::max()));
  EXPECT_NE(where, std::this_thread::get_id());
}

TEST_F(SchedulerInlineTest, CompletionsThatSubmitDoNotNest) {
  Start({.inline_limit = microseconds(100)});
  ASSERT_NO_FATAL_FAILURE(SubmitUntilOneRunsHere());
  constexpr int kJobs = 20'000;  // nested they would need megabytes of stack
  const int first = tag_;
  std::function<void()> next = [&] {
    if (tag_ < first + kJobs) Submit(++tag_, {.then = next});
  };
  next();
  EXPECT_TRUE(scheduler_->Drain(Clock::time_point::max()));
  EXPECT_EQ(tag_, first + kJobs);
  EXPECT_TRUE(callers_.Ended(tag_));
}

TEST_F(SchedulerTest, WhatWaitsTogetherRunsTogether) {
  Start();
  Occupy(1);
  Submit(2, {.rows = 2});
  Submit(3, {.rows = 5});
  clock_.Advance(milliseconds(3));
  engine_->LetAllGo();
  const Outcome outcome = callers_.Await(3);
  EXPECT_EQ(outcome.report.rows, 7);
  EXPECT_EQ(outcome.report.requests, 2);
  EXPECT_DOUBLE_EQ(outcome.report.queue, 3e-3);
  EXPECT_TRUE(callers_.Await(2).output_right);
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 2}, {3, 0, 5}}));
}

TEST_F(SchedulerTest, ABatchEndsAtTheRowLimit) {
  Start({.max_batch_rows = 4});
  Occupy(1);
  for (const int tag : {2, 3, 4}) Submit(tag, {.rows = 2});
  engine_->LetAllGo();
  callers_.Await(4);
  EXPECT_THAT(engine_->batches(),
              ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 2}, {3, 0, 2}}, RanBatch{{4, 0, 2}}));
}

TEST_F(SchedulerTest, TheEnginesRowLimitHoldsWhereItIsLower) {
  engine_ = std::make_unique<PuppetEngine>(1, /*max_batch_rows=*/2);
  Start({.max_batch_rows = 4});
  Submit(1, {.rows = 3});
  EXPECT_TRUE(callers_.Await(1).output_right);
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 2}}, RanBatch{{1, 2, 1}}));
}

TEST_F(SchedulerTest, ALargeRequestIsSplitAndAnsweredOnce) {
  Start({.max_batch_rows = 4});
  Occupy(1);
  Submit(2, {.rows = 10});
  Submit(3, {.rows = 1});
  engine_->LetAllGo();
  const Outcome outcome = callers_.Await(2);
  EXPECT_TRUE(outcome.output_right);
  EXPECT_EQ(outcome.report.stages.gemm, 9) << "the sum of its three batches";
  EXPECT_EQ(outcome.report.rows, 4);
  EXPECT_EQ(outcome.report.requests, 2);
  EXPECT_TRUE(callers_.Await(3).output_right);
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 4}}, RanBatch{{2, 4, 4}},
                                              RanBatch{{2, 8, 2}, {3, 0, 1}}));
}

TEST_F(SchedulerTest, ALargeRequestIsJoinedOverConcurrentBatches) {
  Start({.max_batch_rows = 4}, /*concurrency=*/2);
  engine_->Hold();
  Submit(1, {.rows = 10});
  engine_->AwaitRuns(2);  // two of its three ranges at once
  clock_.Advance(milliseconds(1));
  engine_->LetGo(1);
  engine_->AwaitRuns(3);
  EXPECT_FALSE(callers_.Ended(1));
  engine_->LetAllGo();
  const Outcome outcome = callers_.Await(1);
  EXPECT_TRUE(outcome.output_right);
  EXPECT_DOUBLE_EQ(outcome.report.queue, 0) << "some of it ran all the time";
  EXPECT_THAT(engine_->batches(), UnorderedElementsAre(RanBatch{{1, 0, 4}}, RanBatch{{1, 4, 4}}, RanBatch{{1, 8, 2}}));
}

TEST_F(SchedulerTest, TheTimeBetweenARequestsBatchesIsQueueTime) {
  engine_->before_end = [&] { clock_.Advance(milliseconds(10)); };
  Start({.max_batch_rows = 4});
  Occupy(1);
  Submit(2, {.rows = 8});
  engine_->LetGo(1);
  engine_->AwaitRuns(2);
  Submit(3, {.layer = other_, .priority = 9});  // goes between the two batches of the other
  engine_->LetAllGo();
  EXPECT_DOUBLE_EQ(callers_.Await(2).report.queue, 20e-3);
  EXPECT_THAT(callers_.order(), ElementsAre(1, 3, 2));
}

TEST_F(SchedulerTest, AsManyBatchesRunAtOnceAsTheEngineTakes) {
  Start({}, /*concurrency=*/2);
  engine_->Hold();
  Submit(1);
  engine_->AwaitRuns(1);
  Submit(2);
  engine_->AwaitRuns(2);
  Submit(3);
  Submit(4);
  engine_->LetGo(1);
  engine_->AwaitRuns(3);
  engine_->LetAllGo();
  for (const int tag : {1, 2, 3, 4}) EXPECT_TRUE(callers_.Await(tag).output_right);
  EXPECT_EQ(engine_->batches()[2], (RanBatch{{3, 0, 1}, {4, 0, 1}}));
}

TEST_F(SchedulerTest, UrgentRequestsOvertake) {
  Start({.max_batch_rows = 1, .ageing_step = milliseconds(100)});
  Occupy(1);
  Submit(2, {.priority = 1});
  Submit(3, {.priority = 6, .deadline = clock_.Now() + milliseconds(900)});
  Submit(4, {.priority = 6, .deadline = clock_.Now() + milliseconds(800)});
  clock_.Advance(milliseconds(500));
  Submit(5, {.priority = 5});  // the first has aged past it
  engine_->LetAllGo();
  for (const int tag : {2, 3, 4, 5}) callers_.Await(tag);
  EXPECT_THAT(callers_.order(), ElementsAre(1, 4, 3, 2, 5));
}

TEST_F(SchedulerTest, AFloodingTenantLeavesTheOthersTheirShares) {
  engine_->before_end = [&] { clock_.Advance(milliseconds(1)); };
  Start({.max_batch_rows = 8, .tenant_weights = *TenantWeights::Parse("double=2")});
  Occupy(0);
  for (int tag = 1; tag <= 600; ++tag) Submit(tag, {.rows = 8, .tenant = "flood"});
  // Closed loops: of the others never more than two requests wait.
  std::function<void(std::string, int, int)> go_on = [&](const std::string& tenant, int tag, int last) {
    Submit(tag, {.rows = 8, .tenant = tenant, .then = [&, tenant, tag, last] {
                   if (tag + 2 <= last) go_on(tenant, tag + 2, last);
                 }});
  };
  for (const int first : {0, 1}) {
    go_on("double", 1000 + first, 1599);
    go_on("single", 2000 + first, 2599);
  }
  engine_->LetAllGo();
  callers_.Await(600);
  const std::vector<int> order = callers_.order();
  constexpr int kFirst = 400;  // while all three want the engine
  std::map<int, int> of;       // by thousands
  for (int i = 1; i <= kFirst; ++i) ++of[order[i] / 1000];
  EXPECT_GE(of[1], kFirst / 2 * 0.95);
  EXPECT_GE(of[2], kFirst / 4 * 0.95);
  EXPECT_GE(of[0], kFirst / 4 * 0.95);
  EXPECT_TRUE(scheduler_->Drain(clock_.Now() + std::chrono::hours(1)));
}

TEST_F(SchedulerTest, AFloodOnOneLayerDoesNotStarveAnother) {
  Start({.max_batch_rows = 2});
  Occupy(1);
  Submit(2, {.rows = 2});
  clock_.Advance(microseconds(1));
  Submit(3, {.layer = other_});
  clock_.Advance(microseconds(1));
  for (int tag = 4; tag < 30; ++tag) Submit(tag, {.rows = 2});
  engine_->LetAllGo();
  for (int tag = 1; tag < 30; ++tag) callers_.Await(tag);
  const std::vector<int> order = callers_.order();
  EXPECT_EQ(std::vector<int>(order.begin(), order.begin() + 3), (std::vector<int>{1, 2, 3}));
}

TEST_F(SchedulerTest, ADeadlinePastWhenTheBatchFormsIsNotRun) {
  Start();
  Occupy(1);
  Submit(2, {.deadline = clock_.Now() + microseconds(1000)});
  Submit(3, {.deadline = clock_.Now() + microseconds(1001)});
  clock_.Advance(microseconds(1000));
  engine_->LetAllGo();
  EXPECT_EQ(callers_.Await(2).status,
            absl::DeadlineExceededError("deadline: passed 0 us before a batch formed, after 1000 us in the queue"));
  EXPECT_TRUE(callers_.Await(3).output_right);
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{3, 0, 1}}));
  EXPECT_EQ(observer_.dropped, 1);
}

TEST_F(SchedulerTest, ADeadlineThatPassesWhileRunningIsNotTheSchedulers) {
  Start();
  engine_->Hold();
  Submit(1, {.deadline = clock_.Now() + microseconds(10)});
  engine_->AwaitRuns(1);
  clock_.Advance(milliseconds(1));
  engine_->LetAllGo();
  EXPECT_TRUE(callers_.Await(1).status.ok());
}

TEST_F(SchedulerTest, CancelledWhileQueuedIsCompletedAtOnceAndNotRun) {
  Start();
  Occupy(1);
  const Scheduler::JobId id = Submit(2);
  Submit(3);
  scheduler_->Cancel(id);
  ASSERT_TRUE(callers_.Ended(2));
  EXPECT_EQ(callers_.Await(2).status, absl::CancelledError("cancelled by the caller"));
  EXPECT_FALSE(callers_.Ended(1));
  engine_->LetAllGo();
  callers_.Await(3);
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{3, 0, 1}}));
}

TEST_F(SchedulerTest, CancelledWhileRunningIsDiscardedAndItsNeighbourIsNot) {
  Start();
  Occupy(1);
  const Scheduler::JobId id = Submit(2);
  Submit(3);
  engine_->LetGo(1);
  engine_->AwaitRuns(2);
  scheduler_->Cancel(id);
  EXPECT_FALSE(callers_.Ended(2)) << "the engine still writes to its buffer";
  engine_->LetAllGo();
  EXPECT_EQ(callers_.Await(2).status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(callers_.Await(3).output_right);
}

TEST_F(SchedulerTest, CancelledWhileRunningStaysCancelledWhenTheBatchFails) {
  engine_->verdict = [](const RanBatch&) { return absl::UnknownError("kernel failed"); };
  Start();
  scheduler_->Cancel(Occupy(1));
  engine_->LetAllGo();
  EXPECT_EQ(callers_.Await(1).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(SchedulerTest, CancelledBetweenItsBatchesTheRestIsNotRun) {
  Start({.max_batch_rows = 4});
  engine_->Hold();
  const Scheduler::JobId id = Submit(1, {.rows = 12});
  engine_->AwaitRuns(1);
  scheduler_->Cancel(id);
  engine_->LetAllGo();
  EXPECT_EQ(callers_.Await(1).status.code(), absl::StatusCode::kCancelled);
  EXPECT_TRUE(scheduler_->Drain(clock_.Now() + milliseconds(1)));
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 4}}));
}

TEST_F(SchedulerTest, CancellingWhatIsUnknownOrOverDoesNothing) {
  Start();
  const Scheduler::JobId id = Submit(1);
  callers_.Await(1);
  scheduler_->Cancel(id);
  scheduler_->Cancel(id + 1);
  scheduler_->Cancel(0);
  Submit(2);
  EXPECT_TRUE(callers_.Await(2).status.ok());
}

TEST_F(SchedulerTest, OnlyTheCulpritOfAFailedBatchFails) {
  engine_->verdict = [](const RanBatch& batch) {
    const bool hit = std::any_of(batch.begin(), batch.end(), [](const Ran& ran) { return ran.tag == 4; });
    return hit ? absl::UnknownError("kernel failed") : absl::OkStatus();
  };
  Start();
  Occupy(1);
  for (int tag = 2; tag < 8; ++tag) Submit(tag);
  engine_->LetAllGo();
  EXPECT_EQ(callers_.Await(4).status, absl::UnknownError("kernel failed"));
  for (const int tag : {2, 3, 5, 6, 7}) EXPECT_TRUE(callers_.Await(tag).output_right) << tag;
  Submit(8);
  EXPECT_TRUE(callers_.Await(8).status.ok());
}

TEST_F(SchedulerTest, ARequestThatDoesNotFitTheDeviceMayComeAgain) {
  engine_->verdict = [](const RanBatch& batch) {
    return batch[0].tag == 2 ? absl::ResourceExhaustedError("no memory") : absl::OkStatus();
  };
  Start();
  Submit(2, {.rows = 4});
  const absl::Status status = callers_.Await(2).status;
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_GE(RetryAfter(status), milliseconds(1));
}

TEST_F(SchedulerTest, AFailedRangeFailsTheRequestAndTheRestIsNotRun) {
  engine_->verdict = [](const RanBatch& batch) {
    return batch[0].first_row == 4 ? absl::UnknownError("kernel failed") : absl::OkStatus();
  };
  Start({.max_batch_rows = 4});
  Submit(1, {.rows = 12});
  EXPECT_EQ(callers_.Await(1).status, absl::UnknownError("kernel failed"));
  EXPECT_EQ(engine_->batches().size(), 2u);
}

TEST_F(SchedulerTest, ALostEngineFailsAllThatIsInFlightAndTakesNoMore) {
  engine_->verdict = [](const RanBatch&) { return absl::InternalError("device lost"); };
  Start();
  Occupy(1);
  Submit(2);
  Submit(3, {.layer = other_});
  engine_->LetAllGo();
  for (const int tag : {1, 2, 3}) EXPECT_EQ(callers_.Await(tag).status, absl::InternalError("device lost")) << tag;
  Submit(4);
  ASSERT_TRUE(callers_.Ended(4));
  EXPECT_EQ(callers_.Await(4).status, absl::UnavailableError("the engine is lost: device lost"));
  EXPECT_EQ(engine_->batches().size(), 1u);
  EXPECT_EQ(observer_.lost, 1);
}

TEST_F(SchedulerTest, ALostEngineIsReportedOnceHoweverManyBatchesItTakesAlong) {
  engine_ = std::make_unique<PuppetEngine>(/*concurrency=*/2);
  engine_->verdict = [](const RanBatch&) { return absl::InternalError("device lost"); };
  Start();
  engine_->Hold();
  Submit(1);
  engine_->AwaitRuns(1);
  Submit(2);
  engine_->AwaitRuns(2);
  engine_->LetAllGo();
  for (const int tag : {1, 2}) EXPECT_EQ(callers_.Await(tag).status.code(), absl::StatusCode::kInternal);
  EXPECT_EQ(observer_.lost, 1);
}

TEST_F(SchedulerTest, AHungEngineIsAbandonedAndEverybodyIsAnsweredAtOnce) {
  Start();
  EXPECT_EQ(scheduler_->LongestRun(), Clock::duration::zero());
  Occupy(1);
  Submit(2);
  clock_.Advance(milliseconds(7));
  EXPECT_EQ(scheduler_->LongestRun(), milliseconds(7));
  scheduler_->AbandonEngine(absl::InternalError("hung"));
  scheduler_->AbandonEngine(absl::InternalError("hung, again"));
  for (const int tag : {1, 2}) EXPECT_EQ(callers_.Await(tag).status, absl::InternalError("hung"));
  Submit(3);
  EXPECT_EQ(callers_.Await(3).status.code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(observer_.lost, 1);
  EXPECT_TRUE(scheduler_->Drain(clock_.Now())) << "nobody waits for an answer any more";
  engine_->LetAllGo();  // it comes back after all: nobody is answered twice, and the buffers go
}

TEST_F(SchedulerTest, DrainingAnswersAllThatWasAcceptedAndTakesNoMore) {
  Start();
  Occupy(1);
  Submit(2);
  EXPECT_FALSE(scheduler_->Drain(clock_.Now())) << "no time, and two are open";
  Submit(3);
  ASSERT_TRUE(callers_.Ended(3));
  EXPECT_EQ(callers_.Await(3).status, absl::UnavailableError("the server is draining and takes no new requests"));
  engine_->LetGo(1);
  engine_->AwaitRuns(2);
  EXPECT_FALSE(scheduler_->Drain(clock_.Now())) << "one is left";
  std::thread drain([&] { EXPECT_TRUE(scheduler_->Drain(Clock::time_point::max())); });
  engine_->LetAllGo();
  drain.join();
  ASSERT_TRUE(callers_.Ended(1) && callers_.Ended(2));
  EXPECT_TRUE(callers_.Await(1).output_right);
  EXPECT_TRUE(callers_.Await(2).output_right);
}

TEST_F(SchedulerTest, DrainingAnIdleSchedulerIsDoneAtOnce) {
  Start();
  EXPECT_TRUE(scheduler_->Drain(clock_.Now()));
}

TEST_F(SchedulerTest, DestructionCompletesWhatIsQueuedAndLetsRunningBatchesEnd) {
  Start({.max_batch_rows = 4});
  engine_->Hold();
  Submit(1, {.rows = 2});
  engine_->AwaitRuns(1);
  Submit(2, {.rows = 6});
  std::thread destroy([&] { scheduler_.reset(); });
  EXPECT_EQ(callers_.Await(2).status, absl::UnavailableError("the server is shutting down"));
  engine_->LetAllGo();
  destroy.join();
  EXPECT_TRUE(callers_.Await(1).output_right);
  EXPECT_EQ(engine_->batches().size(), 1u);
}

TEST_F(SchedulerTest, ACallerMaySubmitAndCancelFromItsCompletion) {
  Start();
  Submit(1, {.then = [&] { scheduler_->Cancel(Submit(2)); }});
  EXPECT_EQ(callers_.Await(1).status, absl::OkStatus());
  // The only runner was busy with the completion.
  EXPECT_EQ(callers_.Await(2).status.code(), absl::StatusCode::kCancelled);
}

TEST_F(SchedulerTest, AFullBatchDoesNotWaitForTheWindow) {
  Start({.max_batch_rows = 4, .batch_window = std::chrono::hours(1)});
  Submit(1, {.rows = 2});
  Submit(2, {.rows = 2});
  EXPECT_TRUE(callers_.Await(1).output_right);
  EXPECT_THAT(engine_->batches(), ElementsAre(RanBatch{{1, 0, 2}, {2, 0, 2}}));
}

TEST(SchedulerWindowTest, AWindowEnds) {
  const TimeSource real_time;
  PuppetEngine engine(2);
  Admission admission({});
  RecordingObserver observer;
  Callers callers;
  Scheduler scheduler(engine, admission, {.batch_window = milliseconds(5)}, real_time, observer);
  scheduler.Submit(callers.MakeJob(1, {.layer = MakeLayer(1)}));
  const Outcome outcome = callers.Await(1);
  EXPECT_TRUE(outcome.output_right);
  EXPECT_GE(outcome.report.queue, 5e-3);
}

TEST_F(SchedulerTest, AdmissionLearnsHowLongTheWaitIs) {
  engine_->before_end = [&] { clock_.Advance(milliseconds(10)); };
  Start();
  Submit(1);
  callers_.Await(1);
  const auto admit = [&](microseconds left) {
    return admission_->Admit(1, 1, clock_.Now(), clock_.Now() + left).status();
  };
  EXPECT_TRUE(admit(milliseconds(1)).ok()) << "nothing waits";
  Occupy(2);
  Submit(3);
  EXPECT_EQ(admission_->ExpectedWait(), milliseconds(20)) << "one batch runs, one waits";
  EXPECT_EQ(admission_->ExpectedWait(/*priority=*/1), milliseconds(10)) << "and that one would let more urgent ones by";
  EXPECT_EQ(admit(milliseconds(29)).code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(admit(milliseconds(30)).ok()) << "its own batch takes 10 ms";
  engine_->LetAllGo();
  EXPECT_TRUE(scheduler_->Drain(clock_.Now() + std::chrono::hours(1)));
  EXPECT_EQ(admission_->ExpectedWait(), microseconds(0));
}

TEST_F(SchedulerTest, OverlappingBatchesAreChargedOnce) {
  Start({}, /*concurrency=*/2);
  engine_->Hold();
  for (const int tag : {1, 2}) {
    Submit(tag);
    engine_->AwaitRuns(tag);
  }
  clock_.Advance(milliseconds(10));
  engine_->LetAllGo();
  EXPECT_TRUE(scheduler_->Drain(Clock::time_point::max()));
  admission_->ObserveLoad({.running = {.batches = 2, .rows = 2}});
  EXPECT_NEAR(static_cast<double>(admission_->ExpectedWait().count()), 10e3, 500);
}

TEST_F(SchedulerTest, AFailedBatchTellsNothingAboutTheWait) {
  engine_->verdict = [](const RanBatch&) { return absl::UnknownError("kernel failed"); };
  engine_->before_end = [&] { clock_.Advance(milliseconds(10)); };
  Start();
  Submit(1);
  callers_.Await(1);
  Occupy(2);
  EXPECT_EQ(admission_->ExpectedWait(), microseconds(0));
}

TEST_F(SchedulerTest, CancelledWorkIsNoLongerWaitedFor) {
  engine_->before_end = [&] { clock_.Advance(milliseconds(10)); };
  Start();
  Submit(1);
  callers_.Await(1);
  Occupy(2);
  const Scheduler::JobId id = Submit(3);
  scheduler_->Cancel(id);
  EXPECT_EQ(admission_->ExpectedWait(), milliseconds(10));
}

TEST_F(SchedulerTest, StatsTellWhatWaitsAndForHowLong) {
  Start();
  Occupy(1);
  EXPECT_THAT(scheduler_->Stats(), IsEmpty());
  Submit(2, {.rows = 3, .priority = 1});
  clock_.Advance(milliseconds(2));
  Submit(3, {.rows = 4, .priority = 9});
  const std::vector<QueueStats> stats = scheduler_->Stats();
  ASSERT_EQ(stats.size(), 1u);
  EXPECT_EQ(stats[0].layer, "puppet/1");
  EXPECT_EQ(stats[0].rows, 7);
  EXPECT_DOUBLE_EQ(stats[0].oldest_age_seconds, 2e-3);
}

TEST_F(SchedulerTest, AnIdleSchedulerKeepsNoLayerAlive) {
  Start();
  LayerPtr layer = MakeLayer(7);
  const std::weak_ptr<const Layer> watch = layer;
  Submit(1, {.layer = std::move(layer)});
  callers_.Await(1);
  for (int i = 0; i < 10000 && !watch.expired(); ++i) std::this_thread::sleep_for(milliseconds(1));
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace expertd
