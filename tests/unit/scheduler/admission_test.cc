#include "server/scheduler/admission.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <utility>

#include "server/scheduler/service_time.h"
#include "server/status.h"

namespace expertd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using TimePoint = std::chrono::steady_clock::time_point;

const TimePoint kNow{std::chrono::hours(1)};
constexpr TimePoint kNever = TimePoint::max();

TEST(RetryLaterTest, CarriesItsHint) {
  const absl::Status status = RetryLater("busy", microseconds(1500));
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "busy");
  EXPECT_EQ(RetryAfter(status), microseconds(1500));
}

TEST(RetryLaterTest, AHintIsNeverNegative) {
  EXPECT_EQ(RetryAfter(RetryLater("busy", microseconds(-1))), microseconds(0));
}

TEST(RetryLaterTest, OtherStatusesHaveNoHint) {
  EXPECT_FALSE(RetryAfter(absl::OkStatus()).has_value());
  EXPECT_FALSE(RetryAfter(absl::ResourceExhaustedError("plain")).has_value());
}

TEST(ServiceTimeTest, KnowsNothingBeforeTheFirstBatch) {
  EXPECT_EQ(ServiceTime().Expect({.batches = 5, .rows = 5}), 0);
}

TEST(ServiceTimeTest, SeparatesWhatABatchCostsFromWhatARowCosts) {
  ServiceTime time;
  for (const std::int64_t rows : {1, 100, 10, 1000, 1, 500}) time.Observe(rows, 2e-3 + 1e-5 * rows);
  EXPECT_NEAR(time.Expect({.batches = 1, .rows = 1000}), 12e-3, 1e-6);
  EXPECT_NEAR(time.Expect({.batches = 3, .rows = 3}), 6e-3, 1e-4);
}

TEST(ServiceTimeTest, ABurstAfterLightTrafficIsNotTakenForSlow) {
  ServiceTime time;
  for (int i = 0; i < 100; ++i) time.Observe(1, 1e-3);
  EXPECT_NEAR(time.Expect({.batches = 1, .rows = 64}), 1e-3, 1e-9);
}

TEST(ServiceTimeTest, FollowsAnEngineThatGetsSlower) {
  ServiceTime time;
  for (int i = 0; i < 100; ++i) time.Observe(8, 1e-3);
  for (int i = 0; i < 100; ++i) time.Observe(8, 5e-3);
  EXPECT_NEAR(time.Expect({.batches = 2, .rows = 16}), 10e-3, 1e-4);
}

TEST(ServiceTimeTest, NeverExpectsLessThanNothing) {
  ServiceTime odd;  // larger batches happened to be faster
  odd.Observe(1, 9e-3);
  odd.Observe(100, 1e-3);
  EXPECT_GE(odd.Expect({.batches = 1, .rows = 100000}), 0);
  ServiceTime steep;  // a line through these starts below zero
  steep.Observe(100, 1e-3);
  steep.Observe(200, 9e-3);
  EXPECT_GE(steep.Expect({.batches = 1000, .rows = 1000}), 0);
}

class AdmissionTest : public ::testing::Test {
 protected:
  const std::shared_ptr<Admission> admission_ =
      std::make_shared<Admission>(AdmissionLimits{.max_rows = 10, .max_bytes = 100});
};

TEST_F(AdmissionTest, GrantsUpToExactlyTheBudget) {
  const auto first = admission_->Admit(4, 40, kNow, kNever);
  const auto second = admission_->Admit(6, 60, kNow, kNever);
  EXPECT_TRUE(first.ok());
  EXPECT_TRUE(second.ok());
  EXPECT_EQ(admission_->rows_in_flight(), 10);
  EXPECT_EQ(admission_->bytes_in_flight(), 100);
}

TEST_F(AdmissionTest, RefusesWhenTheRowsAreInUse) {
  const auto held = admission_->Admit(7, 0, kNow, kNever);
  const absl::Status status = admission_->Admit(4, 0, kNow, kNever).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "rows: 4 do not fit beside the 7 in flight (limit 10)");
  EXPECT_EQ(RetryAfter(status), milliseconds(1));  // nothing is known about the wait: not at once
}

TEST_F(AdmissionTest, RefusesWhenTheBytesAreInUse) {
  const auto held = admission_->Admit(0, 100, kNow, kNever);
  const absl::Status status = admission_->Admit(1, 1, kNow, kNever).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "bytes: 1 do not fit beside the 100 in flight (limit 100)");
  EXPECT_EQ(admission_->rows_in_flight(), 0) << "a refused request holds nothing";
}

TEST_F(AdmissionTest, WhatCanNeverFitIsNotTransient) {
  const absl::Status rows = admission_->Admit(11, 0, kNow, kNever).status();
  EXPECT_EQ(rows.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(rows.message(), "rows: 11 are more than the 10 that this server holds at any time");
  EXPECT_EQ(admission_->Admit(1, 101, kNow, kNever).status().code(), absl::StatusCode::kInvalidArgument);
}

TEST_F(AdmissionTest, AloneATenantMayHoldTheWholeBudget) {
  EXPECT_TRUE(admission_->Admit(10, 100, kNow, kNever, 0, "one").ok());
}

TEST(TenantPartsTest, WhileOthersComeATenantHoldsItsPart) {
  const std::shared_ptr<Admission> roomy = std::make_shared<Admission>(AdmissionLimits{.max_rows = 12, .max_bytes = 9});
  const auto held = roomy->Admit(6, 0, kNow, kNever, 0, "flood");
  const auto calm = roomy->Admit(1, 0, kNow, kNever, 0, "calm");
  const absl::Status status = roomy->Admit(1, 0, kNow, kNever, 0, "flood").status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(),
            "rows: 1 do not fit beside the 6 in flight of this tenant, whose part of 12 is 6 while others share it");
  EXPECT_TRUE(RetryAfter(status).has_value());
  EXPECT_TRUE(roomy->Admit(5, 0, kNow, kNever, 0, "calm").ok());
}

TEST_F(AdmissionTest, WhatTheOthersLeaveForLongIsFreeAgain) {
  { const auto passing = admission_->Admit(1, 0, kNow, kNever, 0, "calm"); }
  const auto held = admission_->Admit(5, 0, kNow, kNever, 0, "flood");
  EXPECT_FALSE(admission_->Admit(1, 0, kNow, kNever, 0, "flood").ok());
  EXPECT_TRUE(admission_->Admit(5, 0, kNow + std::chrono::seconds(6), kNever, 0, "flood").ok());
}

TEST_F(AdmissionTest, AFloodIsNotWaitedForByTheOthers) {
  const auto flood = admission_->Admit(5, 0, kNow, kNever, 0, "flood");
  admission_->ObserveBatch(1, 10e-3);
  admission_->ObserveLoad({.queued = {.batches = 5, .rows = 5}, .queued_rows = {5}});
  // 50 ms of the flood's wait, but only its share of them passes before one row of another tenant, which takes 10 ms.
  EXPECT_FALSE(admission_->Admit(1, 0, kNow, kNow + milliseconds(19), 0, "calm").ok());
  EXPECT_TRUE(admission_->Admit(1, 0, kNow, kNow + milliseconds(20), 0, "calm").ok());
}

TEST_F(AdmissionTest, ATicketGivesItsShareBackWhenItGoes) {
  {
    const auto ticket = admission_->Admit(10, 100, kNow, kNever);
    EXPECT_FALSE(admission_->Admit(1, 1, kNow, kNever).ok());
  }
  EXPECT_EQ(admission_->rows_in_flight(), 0);
  EXPECT_EQ(admission_->bytes_in_flight(), 0);
  EXPECT_TRUE(admission_->Admit(10, 100, kNow, kNever).ok());
}

TEST_F(AdmissionTest, AMovedTicketGivesItsShareBackOnce) {
  Ticket last;
  {
    Ticket first = *admission_->Admit(4, 40, kNow, kNever);
    Ticket second = std::move(first);
    last = std::move(second);
  }
  EXPECT_EQ(admission_->rows_in_flight(), 4);
  last = *admission_->Admit(2, 20, kNow, kNever);  // the old share goes back
  EXPECT_EQ(admission_->rows_in_flight(), 2);
  last = Ticket();
  EXPECT_EQ(admission_->rows_in_flight(), 0);
}

TEST_F(AdmissionTest, ATicketOutlivesItsAdmission) {
  auto admission = std::make_shared<Admission>(AdmissionLimits{});
  const Ticket ticket = *admission->Admit(1, 1, kNow, kNever);
  admission.reset();
}

TEST_F(AdmissionTest, ADeadlineMustLieAhead) {
  EXPECT_EQ(admission_->Admit(1, 1, kNow, kNow).status().code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_EQ(admission_->Admit(1, 1, kNow, kNow - microseconds(7)).status().message(),
            "deadline: passed 7 us before the request came");
  EXPECT_TRUE(admission_->Admit(1, 1, kNow, kNow + microseconds(1)).ok());
}

TEST_F(AdmissionTest, RefusesWhatWouldWaitPastItsDeadline) {
  admission_->ObserveBatch(5, 10e-3);
  admission_->ObserveLoad(
      {.running = {.batches = 1, .rows = 5}, .queued = {.batches = 2, .rows = 10}, .queued_rows = {10}});
  EXPECT_EQ(admission_->ExpectedWait(), milliseconds(30));
  EXPECT_TRUE(admission_->Admit(1, 1, kNow, kNow + milliseconds(40)).ok()) << "its own batch takes 10 ms";
  const absl::Status status = admission_->Admit(1, 1, kNow, kNow + milliseconds(35)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(status.message(), "deadline: 35000 us away, and 15 rows ahead take about 30000 us, its own batch 10000 us");
  EXPECT_EQ(RetryAfter(status), milliseconds(5));  // when enough of it will be gone
}

TEST_F(AdmissionTest, AnUrgentRequestDoesNotWaitForLessUrgentOnes) {
  admission_->ObserveBatch(5, 10e-3);
  admission_->ObserveLoad(
      {.running = {.batches = 1, .rows = 5}, .queued = {.batches = 4, .rows = 20}, .queued_rows = {15, 0, 0, 0, 0, 5}});
  EXPECT_EQ(admission_->ExpectedWait(0), milliseconds(50));
  EXPECT_EQ(admission_->ExpectedWait(5), milliseconds(20)) << "what runs, and a quarter of what waits";
  EXPECT_EQ(admission_->ExpectedWait(6), milliseconds(10));
  EXPECT_FALSE(admission_->Admit(1, 1, kNow, kNow + milliseconds(30), /*priority=*/0).ok());
  EXPECT_TRUE(admission_->Admit(1, 1, kNow, kNow + milliseconds(30), /*priority=*/5).ok());
}

TEST_F(AdmissionTest, AnIdleEngineTakesAnyDeadline) {
  admission_->ObserveBatch(5, 10);
  admission_->ObserveLoad({});
  EXPECT_TRUE(admission_->Admit(1, 1, kNow, kNow + microseconds(1)).ok());
}

TEST_F(AdmissionTest, AFullBudgetHintsAtTheTimeItTakesToEmpty) {
  admission_->ObserveBatch(5, 10e-3);
  admission_->ObserveLoad({.queued = {.batches = 2, .rows = 10}, .queued_rows = {10}});
  const auto held = admission_->Admit(10, 0, kNow, kNever);
  EXPECT_EQ(RetryAfter(admission_->Admit(1, 0, kNow, kNever).status()), milliseconds(20));
  admission_->ObserveBatch(5, 1e6);
  EXPECT_EQ(RetryAfter(admission_->Admit(1, 0, kNow, kNever).status()), std::chrono::seconds(10));
}

}  // namespace
}  // namespace expertd
