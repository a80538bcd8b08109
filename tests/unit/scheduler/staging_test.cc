// Which rows go to the device ahead of their batch, and that their copies end on every path.
#include "server/scheduler/staging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "tests/unit/scheduler/puppets.h"

namespace expertd {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

// Requests of one tenant each, unless it is said; ids 1, 2, ... in the order given.
class GrantTest : public ::testing::Test {
 protected:
  struct Wish {
    std::int64_t rows = 10;
    int priority = 0;
    std::int64_t aged = 0;
    double had = 0;
    seconds left{100};
  };

  std::vector<std::uint64_t> Grant(const std::vector<Wish>& wishes, const SlotsHeld& held = {}) {
    std::vector<SlotWish> all;
    for (const Wish& wish : wishes) {
      accounts_.push_back(std::make_unique<TenantAccount>());
      accounts_.back()->virtual_time = wish.had;
      waiting_.push_back(std::make_unique<Waiting>(Waiting{.id = waiting_.size() + 1,
                                                           .tenant = accounts_.back().get(),
                                                           .priority = wish.priority,
                                                           .deadline = Waiting::TimePoint(wish.left),
                                                           .rows = wish.rows}));
      all.push_back({waiting_.back().get(), wish.priority + wish.aged, wish.rows});
    }
    std::reverse(all.begin(), all.end());  // whatever order they come in
    std::vector<std::uint64_t> ids;
    for (const SlotWish& wish : GrantSlots(all, held, limits_)) ids.push_back(wish.request->id);
    return ids;
  }

  StagingLimits limits_ = {.slots = 100};
  std::vector<std::unique_ptr<TenantAccount>> accounts_;
  std::vector<std::unique_ptr<Waiting>> waiting_;
};

TEST_F(GrantTest, InTheOrderOfService) {
  EXPECT_THAT(Grant({{.had = 1},
                     {.had = 1, .left = seconds(50)},
                     {.had = 0.5},
                     {.priority = 3, .had = 9},
                     {.aged = 4, .had = 10},
                     {.had = 1}}),
              ElementsAre(5, 4, 3, 2, 1, 6));
}

TEST_F(GrantTest, NoMoreThanThereIs) {
  EXPECT_THAT(Grant({{.rows = 60}, {.rows = 40}, {.rows = 1}}), ElementsAre(1, 2));
  waiting_.clear();
  EXPECT_THAT(Grant({{.rows = 60}, {.rows = 40}}, {40}), ElementsAre(1));
}

TEST_F(GrantTest, WhatDoesNotFitIsNotOvertakenBySmallerOnes) {
  EXPECT_THAT(Grant({{.rows = 60}, {.rows = 41}, {.rows = 1}}), ElementsAre(1));
}

TEST_F(GrantTest, WhatWouldNeverFitKeepsNobodyWaiting) {
  EXPECT_THAT(Grant({{.rows = 101}, {.rows = 1}}), ElementsAre(2));
}

TEST_F(GrantTest, HigherPrioritiesHaveAReserveEach) {
  limits_.reserve = 5;  // nine times above priority 0, none above 9
  EXPECT_THAT(Grant({{.rows = 55}, {.rows = 1}}), ElementsAre(1));
  waiting_.clear();
  EXPECT_THAT(Grant({{.rows = 5, .priority = 9}, {.rows = 5, .priority = 8}, {.rows = 1}}, {55}), ElementsAre(1, 2))
      << "a flood of the lowest leaves the others theirs";
  waiting_.clear();
  EXPECT_THAT(Grant({{.rows = 6, .priority = 8}}, {55, 0, 0, 0, 0, 0, 0, 0, 0, 0}), ElementsAre(1));
  waiting_.clear();
  EXPECT_THAT(Grant({{.rows = 41, .priority = 8}}, {55}), IsEmpty()) << "four are of 9";
  waiting_.clear();
  EXPECT_THAT(Grant({{.rows = 10}, {.rows = 40}}, {0, 0, 0, 0, 0, 0, 0, 0, 0, 5}), ElementsAre(1, 2))
      << "what 9 holds is its reserve in use";
}

TEST_F(GrantTest, AnAgedRequestWithoutRoomHoldsUpNobodyAboveIt) {
  limits_.reserve = 5;
  EXPECT_THAT(Grant({{.rows = 10, .aged = 10}, {.rows = 5, .priority = 9}}, {50}), ElementsAre(2));
}

class StagingTest : public ::testing::Test {
 protected:
  ~StagingTest() override {
    engine_.LetAllGo();
    scheduler_.reset();
    EXPECT_EQ(engine_.copies(), 0) << "every copy has ended";
  }

  // Batches of eight rows, sixteen ahead of them, and one that runs.
  void Start(SchedulerOptions options = {}) {
    options.max_batch_rows = 8;
    engine_.Stage();
    scheduler_ = std::make_unique<Scheduler>(engine_, *admission_, options, clock_, observer_);
    engine_.Hold();
    Submit(1);
    engine_.AwaitRuns(1);
  }
  Scheduler::JobId Submit(int tag, Callers::Wish wish = {}) {
    if (wish.layer == nullptr) wish.layer = layer_;
    return scheduler_->Submit(callers_.MakeJob(tag, std::move(wish)));
  }
  void LetAllGoAndExpectRight(std::initializer_list<int> tags) {
    engine_.LetAllGo();
    for (const int tag : tags) {
      const Outcome outcome = callers_.Await(tag);
      EXPECT_TRUE(outcome.status.ok() && outcome.output_right) << tag << ": " << outcome.status;
    }
    EXPECT_TRUE(scheduler_->Drain(Clock::time_point::max()));
  }

  LayerPtr layer_ = MakeLayer(1);
  FakeClock clock_;
  PuppetEngine engine_;
  std::shared_ptr<Admission> admission_ = std::make_shared<Admission>(AdmissionLimits{});
  RecordingObserver observer_;
  Callers callers_;
  std::unique_ptr<Scheduler> scheduler_;
};

TEST_F(StagingTest, WhatMustWaitIsStagedWhenItArrives) {
  Start();
  Submit(2, {.rows = 3});
  EXPECT_THAT(engine_.staged(), ElementsAre(Ran{2, 0, 3, true})) << "and not what ran at once";
  LetAllGoAndExpectRight({1, 2});
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 3, true}}));
}

TEST_F(StagingTest, TwoBatchesAheadAndTheRestWhenThereIsRoom) {
  Start();
  for (const int tag : {2, 3, 4}) Submit(tag, {.rows = 8});
  EXPECT_THAT(engine_.staged(), ElementsAre(Ran{2, 0, 8, true}, Ran{3, 0, 8, true}));
  EXPECT_EQ(engine_.copies(), 2);
  engine_.LetGo(1);
  engine_.AwaitRuns(2);  // the first of them runs: the third has its slots
  EXPECT_EQ(engine_.staged().back(), (Ran{4, 0, 8, true}));
  EXPECT_EQ(engine_.copies(), 3);
  LetAllGoAndExpectRight({2, 3, 4});
}

TEST_F(StagingTest, MoreUrgentRequestsTakeNoSlotsBack) {
  Start();
  for (const int tag : {2, 3, 4, 5}) Submit(tag, {.rows = 8, .priority = tag});
  EXPECT_THAT(engine_.staged(), ElementsAre(Ran{2, 0, 8, true}, Ran{3, 0, 8, true}));
  engine_.LetGo(1);
  engine_.AwaitRuns(2);  // runs 5, which had no slot
  EXPECT_EQ(engine_.batches().back(), (RanBatch{{5, 0, 8}}));
  EXPECT_EQ(engine_.staged().size(), 2u);
  engine_.LetGo(1);
  engine_.AwaitRuns(3);  // runs 4 likewise; then 3 and 2
  LetAllGoAndExpectRight({2, 3, 4, 5});
}

TEST_F(StagingTest, NoneWithoutBatchesAhead) {
  Start({.stage_batches_ahead = 0});
  Submit(2, {.rows = 8});
  EXPECT_THAT(engine_.staged(), IsEmpty());
  LetAllGoAndExpectRight({2});
}

TEST_F(StagingTest, OfALargeRequestTheNextBatch) {
  Start();
  Submit(2, {.rows = 20});
  EXPECT_THAT(engine_.staged(), ElementsAre(Ran{2, 0, 8, true}));
  LetAllGoAndExpectRight({2});
  EXPECT_THAT(engine_.staged(), ElementsAre(Ran{2, 0, 8, true}, Ran{2, 8, 8, true}, Ran{2, 16, 4, true}));
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 8, true}}, RanBatch{{2, 8, 8, true}},
                                             RanBatch{{2, 16, 4, true}}));
}

TEST_F(StagingTest, ACopyServesBothBatchesOfARequestThatIsCut) {
  Start();
  Submit(2, {.rows = 6});
  Submit(3, {.rows = 5});
  LetAllGoAndExpectRight({2, 3});
  EXPECT_EQ(engine_.staged().size(), 2u);
  EXPECT_THAT(engine_.batches(),
              ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 6, true}, {3, 0, 2, true}}, RanBatch{{3, 2, 3, true}}));
}

TEST_F(StagingTest, CancelledOrExpiredItsSlotsAreFree) {
  Start();
  const Scheduler::JobId cancelled = Submit(2, {.rows = 8});
  Submit(3, {.rows = 8, .deadline = clock_.Now() + milliseconds(1)});
  scheduler_->Cancel(cancelled);
  EXPECT_EQ(engine_.copies(), 1);
  clock_.Advance(milliseconds(1));
  Submit(4, {.rows = 8});
  EXPECT_EQ(engine_.copies(), 2) << "the slots of the first";
  LetAllGoAndExpectRight({4});
  EXPECT_TRUE(absl::IsCancelled(callers_.Await(2).status));
  EXPECT_TRUE(absl::IsDeadlineExceeded(callers_.Await(3).status));
}

TEST_F(StagingTest, CancelledWhileItsCopyBeginsItIsDropped) {
  Scheduler::JobId id = 1;
  engine_.before_stage = [&] {
    scheduler_->Cancel(++id);
    return absl::OkStatus();
  };
  Start();
  Submit(2, {.rows = 8});
  EXPECT_TRUE(absl::IsCancelled(callers_.Await(2).status));
  EXPECT_EQ(engine_.staged().size(), 1u) << "from rows that nobody else had any more";
  EXPECT_EQ(engine_.copies(), 0);
}

TEST_F(StagingTest, RefusedTheRowsGoWithTheirBatch) {
  engine_.before_stage = [] { return absl::ResourceExhaustedError("no room"); };
  Start();
  Submit(2, {.rows = 8});
  Submit(3, {.rows = 8});
  LetAllGoAndExpectRight({2, 3});
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 8}}, RanBatch{{3, 0, 8}}));
}

TEST_F(StagingTest, HalvesOfAFailedBatchHaveTheCopyToo) {
  engine_.verdict = [](const RanBatch& batch) {
    return batch[0].rows > 2 ? absl::ResourceExhaustedError("too many") : absl::OkStatus();
  };
  Start();
  Submit(2, {.rows = 4});
  LetAllGoAndExpectRight({2});
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{1, 0, 1}}, RanBatch{{2, 0, 4, true}}, RanBatch{{2, 0, 2, true}},
                                             RanBatch{{2, 2, 2, true}}));
}

TEST_F(StagingTest, ALostEngineDropsAll) {
  engine_.verdict = [](const RanBatch&) { return absl::InternalError("gone"); };
  Start();
  for (const int tag : {2, 3, 4}) Submit(tag, {.rows = 8});
  engine_.LetAllGo();
  for (const int tag : {1, 2, 3, 4}) EXPECT_TRUE(absl::IsInternal(callers_.Await(tag).status));
}

TEST_F(StagingTest, AnAbandonedEngineDropsWhatWaits) {
  Start();
  for (const int tag : {2, 3}) Submit(tag, {.rows = 8});
  scheduler_->AbandonEngine(absl::InternalError("hangs"));
  for (const int tag : {1, 2, 3}) EXPECT_TRUE(absl::IsInternal(callers_.Await(tag).status));
  EXPECT_EQ(engine_.copies(), 0);
}

TEST_F(StagingTest, ADestroyedSchedulerDropsAll) {
  Start();
  for (const int tag : {2, 3, 4}) Submit(tag, {.rows = 8});
  engine_.LetAllGo();
  scheduler_.reset();
  EXPECT_EQ(engine_.copies(), 0);
}

}  // namespace
}  // namespace expertd
