// Operations against simulated servers, in simulated time: what the load tester reports must be what happened.
#include "client/cpp/program/bench/book.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <vector>

#include "client/cpp/program/bench/meter.h"

namespace expertd::client {
namespace {

constexpr Nanos kMilli = 1'000'000;

// Runs a book against a server that answers a request sent at `now` at `answer(now)`, and a meter beside it.
template <class AnswerAt>
void Simulate(Book& book, Meter& meter, AnswerAt answer) {
  std::multimap<Nanos, int> answers;  // when, and of which slot
  for (Nanos now = 0;;) {
    while (const auto late = book.GiveUp(now)) meter.Finished(*late, 1, absl::DeadlineExceededError("late"));
    while (const auto slot = book.Start(now)) answers.emplace(answer(now), *slot);
    const Nanos next = std::min(answers.empty() ? kNever : answers.begin()->first, book.NextDue());
    if (next == kNever) break;
    now = std::max(now, next);
    while (!answers.empty() && answers.begin()->first <= now) {
      const int slot = answers.begin()->second;
      answers.erase(answers.begin());
      meter.Answered(book.operation(slot), now, {});
      if (book.Answered(slot, true, now, now)) {
        answers.emplace(answer(now), slot);
      } else {
        meter.Finished(book.operation(slot), 1, absl::OkStatus());
      }
    }
  }
  meter.Close(meter.end());
}

// Answers after 1 ms, but is stopped for the first 200 ms of every second.
Nanos Pausing(Nanos now) {
  const Nanos into = now % kNanosPerSecond, pause = 200 * kMilli;
  return (into < pause ? now - into + pause : now) + kMilli;
}

// One arrival each millisecond: a fifth of them wait 0 to 200 ms more, so one in a hundred waits longer than 190 ms.
constexpr double kTrueP99 = (190.0 + 1) * kMilli;

TEST(BookTest, AnOpenLoopSeesThePauses) {
  for (const int slots : {1000, 20}) {  // 20: most of what waits, waits in the load tester
    const Meter::Plan plan{.open_loop = true, .warmup = 0, .window = 10 * kNanosPerSecond};
    Book book({.slots = slots, .end = plan.window}, Arrivals::Constant(1000));
    Meter meter(plan);
    Simulate(book, meter, Pausing);
    const Window& window = meter.windows()[0];
    EXPECT_EQ(window.latency.count(), 10'000) << slots;
    EXPECT_NEAR(static_cast<double>(window.latency.Percentile(0.99)), kTrueP99, kTrueP99 * 0.01) << slots;
    EXPECT_EQ(meter.counts().held_back > 0, slots == 20) << slots;
    EXPECT_EQ(meter.counts().send_lag.max(), 0) << "nothing else was late";
    EXPECT_EQ(book.in_progress(), 0);
  }
}

TEST(BookTest, AClosedLoopDoesNot) {
  const Meter::Plan plan{.window = 10 * kNanosPerSecond};
  Book book({.slots = 1, .end = plan.window});
  Meter meter(plan);
  Simulate(book, meter, Pausing);
  EXPECT_LT(static_cast<double>(meter.windows()[0].latency.Percentile(0.99)), kTrueP99 / 50);
}

TEST(BookTest, ServiceTimeLeavesOutWhatWaitedHere) {
  const Meter::Plan plan{.open_loop = true, .window = kNanosPerSecond};
  Book book({.slots = 1, .end = plan.window}, Arrivals::Constant(1000));
  Meter meter(plan);
  Simulate(book, meter, [](Nanos now) { return now + 2 * kMilli; });  // half of what is asked for
  const Window& window = meter.windows()[0];
  EXPECT_EQ(window.service.Percentile(1.0), 2 * kMilli);
  EXPECT_EQ(window.latency.max(), 1001 * kMilli) << "the last of 1000 was due at 999 ms and answered at 2 s";
  EXPECT_EQ(window.completed, 499) << "what the server got done inside the window";
}

TEST(BookTest, WhatWaitsTooLongIsGivenUpAndCounted) {
  const Meter::Plan plan{.open_loop = true, .window = kNanosPerSecond};
  Book book({.slots = 1, .end = plan.window, .timeout = 10 * kMilli}, Arrivals::Constant(1000));
  Meter meter(plan);
  Simulate(book, meter, [](Nanos now) { return now + 4 * kMilli; });
  const Window& window = meter.windows()[0];
  EXPECT_EQ(window.operations(), 1000);
  EXPECT_NEAR(static_cast<double>(window.latency.count()), 250, 5);
  EXPECT_EQ(window.statuses.at(absl::StatusCode::kDeadlineExceeded), 1000 - window.latency.count());
  EXPECT_LE(window.latency.max(), 14 * kMilli);
}

TEST(BookTest, ADecodeStepGoesThroughItsLayersInOrder) {
  const Meter::Plan plan{.calls = 3, .window = kNanosPerSecond};
  Book book({.slots = 2, .calls = 3, .end = plan.window});
  Meter meter(plan);
  Simulate(book, meter, [](Nanos now) { return now + 5 * kMilli; });
  EXPECT_EQ(meter.windows()[0].latency.max(), 15 * kMilli);
  EXPECT_EQ(meter.windows()[0].latency.count(), 2 * 66)
      << "66 steps of 15 ms fit in a second, in each of two sequences";
  for (const Histogram& calls : meter.counts().calls) EXPECT_EQ(calls.max(), 5 * kMilli);
}

TEST(BookTest, AFailureEndsAStepAndPausesItsSlot) {
  Book book({.slots = 1, .calls = 3});
  ASSERT_EQ(book.Start(0), 0);
  EXPECT_FALSE(book.Answered(0, false, 10, 50));
  EXPECT_EQ(book.operation(0).finished, 10);
  EXPECT_EQ(book.Start(49), std::nullopt);
  EXPECT_EQ(book.NextDue(), 50);
  EXPECT_EQ(book.Start(50), 0);
  EXPECT_EQ(book.operation(0).call, 0);
}

TEST(BookTest, StoppedItStartsNothing) {
  Book open({.slots = 1}, Arrivals::Constant(1000)), closed({.slots = 2});
  ASSERT_TRUE(open.Start(0).has_value());
  ASSERT_TRUE(closed.Start(0).has_value());
  for (Book* book : {&open, &closed}) {
    EXPECT_FALSE(book->Over(kNanosPerSecond));
    book->Stop();
    EXPECT_TRUE(book->Over(0));
    EXPECT_FALSE(book->Answered(0, true, 5, 5));
    EXPECT_EQ(book->Start(kNanosPerSecond), std::nullopt);
    EXPECT_EQ(book->NextDue(), kNever);
  }
}

TEST(MeterTest, WindowsFollowTheWarmUpWithoutAGap) {
  Meter meter({.open_loop = true, .warmup = 100, .window = 50, .windows = 2});
  for (const Nanos scheduled : {0, 99, 100, 149, 150, 199, 200}) {
    Operation operation{.scheduled = scheduled, .started = scheduled, .finished = scheduled + 7};
    meter.Finished(operation, 3, scheduled == 150 ? absl::ResourceExhaustedError("full") : absl::OkStatus());
  }
  meter.Close(1000);
  const auto& windows = meter.windows();
  EXPECT_EQ(windows[0].operations(), 2);
  EXPECT_EQ(windows[1].operations(), 2);
  EXPECT_EQ(windows[0].completed, 2) << "99 finished at 106, 149 at 156";
  EXPECT_EQ(windows[0].completed_rows, 6);
  EXPECT_EQ(windows[1].FailedShare(), 0.5);
  EXPECT_DOUBLE_EQ(windows[1].seconds, 50e-9);
  EXPECT_EQ(meter.counts().first_error.message(), "full");
}

}  // namespace
}  // namespace expertd::client
