#include "server/scheduler/policy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <memory>
#include <string>

#include "tests/unit/scheduler/puppets.h"

namespace expertd {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;
using TimePoint = Waiting::TimePoint;

constexpr microseconds kStep = milliseconds(100);

struct Request {
  std::string tenant = "one";
  int layer = 0;
  std::int64_t rows = 1;
  int priority = 0;
  microseconds age{0};
  microseconds left = std::chrono::hours(1);  // until the deadline
};

class PolicyTest : public ::testing::Test {
 protected:
  // Ids are 1, 2, ... in the order given: the order of arrival.
  void Queue(const std::vector<Request>& requests) {
    for (const Request& request : requests) {
      auto waiting = std::make_unique<Waiting>(Waiting{.id = waiting_.size() + 1,
                                                       .tenant = &Tenant(request.tenant),
                                                       .priority = request.priority,
                                                       .arrival = now_ - request.age,
                                                       .deadline = now_ + request.left,
                                                       .rows = request.rows});
      queues_[Key(request.layer)].Add(*waiting);
      waiting_.push_back(std::move(waiting));
    }
  }

  // The batch as (id, rows).
  std::vector<std::pair<std::uint64_t, std::int64_t>> Batch(const BatchLimits& limits = {.ageing_step = kStep}) {
    std::vector<std::pair<std::uint64_t, std::int64_t>> batch;
    for (const Pick& pick : Decide(queues_, limits, now_).batch) batch.emplace_back(pick.request->id, pick.rows);
    return batch;
  }
  std::vector<std::uint64_t> Expired() {
    std::vector<std::uint64_t> ids;
    for (const Waiting* request : Decide(queues_, {}, now_).expired) ids.push_back(request->id);
    return ids;
  }
  // Takes the batch out of the queues and charges a microsecond per row, as the scheduler would.
  std::vector<std::uint64_t> Serve(const BatchLimits& limits) {
    std::vector<std::uint64_t> ids;
    for (const Pick& pick : Decide(queues_, limits, now_).batch) {
      ids.push_back(pick.request->id);
      for (auto& [layer, queue] : queues_) {
        const auto lane = queue.lanes().find({pick.request->tenant, pick.request->priority});
        if (lane != queue.lanes().end() && lane->second.by_arrival.count(pick.request) > 0) {
          pick.request->tenant->Charge(static_cast<double>(pick.rows) * limits.row_seconds);
          queue.Take(*pick.request, pick.rows);
          break;
        }
      }
    }
    return ids;
  }

  std::string NameOf(std::uint64_t id) const {
    for (const auto& [name, account] : tenants_) {
      if (waiting_[id - 1]->tenant == &account) return name;
    }
    return "";
  }
  TenantAccount& Tenant(const std::string& name) { return tenants_[name]; }

  const Layer* Key(int layer) {
    while (layers_.size() <= static_cast<std::size_t>(layer)) layers_.push_back(MakeLayer(layer));
    return layers_[layer].get();
  }

  const TimePoint now_ = FakeClock().Now();
  std::vector<LayerPtr> layers_;
  std::map<std::string, TenantAccount> tenants_;
  std::vector<std::unique_ptr<Waiting>> waiting_;
  LayerQueues queues_;
};

TEST_F(PolicyTest, NothingWaitsNothingHappens) {
  const BatchDecision decision = Decide(queues_, {}, now_);
  EXPECT_THAT(decision.batch, IsEmpty());
  EXPECT_THAT(decision.expired, IsEmpty());
  EXPECT_FALSE(decision.look_again.has_value());
}

TEST_F(PolicyTest, ALoneRequestRunsAtOnce) {
  Queue({{.rows = 7}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(1, 7)));
}

TEST_F(PolicyTest, ABatchIsFilledWithWhatWaitsForTheSameLayer) {
  Queue({{.layer = 0, .rows = 1}, {.layer = 1, .rows = 1}, {.layer = 0, .rows = 2}, {.layer = 0, .rows = 3}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(1, 1), Pair(3, 2), Pair(4, 3)));
}

TEST_F(PolicyTest, ABatchThatIsExactlyFullTakesNoMore) {
  Queue({{.rows = 3}, {.rows = 5}, {.rows = 1}});
  EXPECT_THAT(Batch({.max_rows = 8}), ElementsAre(Pair(1, 3), Pair(2, 5)));
}

TEST_F(PolicyTest, TheLastRequestIsCutAtTheRowLimit) {
  Queue({{.rows = 3}, {.rows = 6}, {.rows = 1}});
  EXPECT_THAT(Batch({.max_rows = 8}), ElementsAre(Pair(1, 3), Pair(2, 5)));
}

TEST_F(PolicyTest, WhatIsLeftOfACutRequestKeepsItsPlace) {
  Queue({{.rows = 10}, {.rows = 1}});
  EXPECT_THAT(Serve({.max_rows = 4}), ElementsAre(1));
  EXPECT_THAT(Serve({.max_rows = 4}), ElementsAre(1));
  EXPECT_THAT(Batch({.max_rows = 4}), ElementsAre(Pair(1, 2), Pair(2, 1)));
}

TEST_F(PolicyTest, HigherPriorityGoesFirst) {
  Queue({{.priority = 0}, {.priority = 9}, {.priority = 4}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1), Pair(3, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, WithinAPriorityTheEarlierDeadlineGoesFirst) {
  Queue({{.left = milliseconds(30)}, {.left = milliseconds(10)}, {.left = milliseconds(20)}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1), Pair(3, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, PriorityOutranksTheDeadline) {
  Queue({{.priority = 0, .left = milliseconds(1)}, {.priority = 1, .left = std::chrono::hours(1)}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, OfEqualsTheFirstToComeGoesFirst) {
  Queue({{}, {}, {}});
  EXPECT_THAT(Batch({.max_rows = 2}), ElementsAre(Pair(1, 1), Pair(2, 1)));
}

TEST_F(PolicyTest, ARequestGainsAClassPerAgeingStep) {
  Queue({{.priority = 1, .age = 3 * kStep}, {.priority = 3}, {.priority = 4}, {.priority = 5}});
  // The first now counts as 4, and its deadline is the third's: arrival decides.
  EXPECT_THAT(Batch(), ElementsAre(Pair(4, 1), Pair(1, 1), Pair(3, 1), Pair(2, 1)));
}

TEST_F(PolicyTest, AFloodOfTheHighestPriorityDelaysTheLowestByTenStepsAtMost) {
  Queue({{.priority = 0, .age = 10 * kStep}, {.priority = 9}});
  EXPECT_THAT(Batch({.max_rows = 1, .ageing_step = kStep}), ElementsAre(Pair(1, 1)));
  Tenant("one").served[0] = now_ - 8 * kStep;  // another of its class was served since: its turn is yet to come
  EXPECT_THAT(Batch({.max_rows = 1, .ageing_step = kStep}), ElementsAre(Pair(2, 1)));
}

TEST_F(PolicyTest, WhoFloodsDoesNotAgeByItsOwnBacklog) {
  Queue({{.tenant = "flood", .age = 20 * kStep}, {.tenant = "calm"}});
  Tenant("flood").served[0] = now_;
  Tenant("flood").Charge(1e-3);
  EXPECT_THAT(Batch({.max_rows = 1, .ageing_step = kStep}), ElementsAre(Pair(2, 1)));
}

TEST_F(PolicyTest, WithinAClassTheTenantThatHadLessGoesFirst) {
  Queue({{.tenant = "one"}, {.tenant = "two"}, {.tenant = "two", .priority = 1}});
  Tenant("one").Charge(1e-3);
  EXPECT_THAT(Batch(), ElementsAre(Pair(3, 1), Pair(2, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, SharesOutrankDeadlines) {
  Queue({{.tenant = "one", .left = milliseconds(1)}, {.tenant = "two"}});
  Tenant("one").Charge(1e-6);
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, ABatchThatCannotHoldAllIsSharedByWeight) {
  Tenant("three").weight = 3;
  for (int i = 0; i < 16; ++i) Queue({{.tenant = "one"}});
  for (int i = 0; i < 16; ++i) Queue({{.tenant = "three"}});
  int of_three = 0;
  for (const auto& [id, rows] : Batch({.max_rows = 16})) of_three += id > 16 ? 1 : 0;
  EXPECT_EQ(of_three, 12);
}

TEST_F(PolicyTest, TheLayerOfTheTenantThatHadLessIsServed) {
  Queue({{.tenant = "one", .layer = 0, .age = microseconds(9)}, {.tenant = "two", .layer = 1}});
  Tenant("one").Charge(1e-6);
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1)));
}

TEST_F(PolicyTest, RidersAreChargedToTheirTenants) {
  // "one" keeps layer 0 busy, and "two" rides along in its batches; then both want layer 1.
  Queue({{.tenant = "one", .layer = 0}, {.tenant = "two", .layer = 0, .rows = 5}});
  EXPECT_THAT(Serve({.max_rows = 8}), ElementsAre(1, 2));
  Queue({{.tenant = "two", .layer = 1}, {.tenant = "one", .layer = 1}});
  EXPECT_THAT(Serve({.max_rows = 1}), ElementsAre(4));
}

TEST_F(PolicyTest, AFloodLeavesTheOthersTheirShares) {
  Tenant("double").weight = 2;
  std::map<std::string, int> served;
  for (int batch = 0; batch < 400; ++batch) {
    // Whatever the flood sends, the others always have one batch waiting.
    for (int i = 0; i < 4; ++i) Queue({{.tenant = "flood", .rows = 8}});
    for (const char* tenant : {"double", "single"}) Queue({{.tenant = tenant, .rows = 8}});
    for (const std::uint64_t id : Serve({.max_rows = 8})) ++served[NameOf(id)];
  }
  EXPECT_NEAR(served["double"], 200, 2);
  EXPECT_NEAR(served["single"], 100, 2);
}

TEST_F(PolicyTest, ExpiredRequestsAreDroppedNotRun) {
  Queue({{.left = microseconds(-1)}, {.left = microseconds(0)}, {.left = microseconds(1)}});
  EXPECT_THAT(Expired(), ElementsAre(1, 2));
  EXPECT_THAT(Batch(), ElementsAre(Pair(3, 1)));
}

TEST_F(PolicyTest, ExpiredRequestsAreFoundAtEveryPriorityAndLayer) {
  Queue({{.layer = 0, .priority = 9},
         {.layer = 0, .priority = 5, .left = microseconds(0)},
         {.layer = 0, .priority = 5},
         {.layer = 0, .priority = 0, .left = microseconds(0)},
         {.layer = 1, .priority = 0, .left = microseconds(0)},
         {.layer = 1, .priority = 0}});
  EXPECT_THAT(Expired(), UnorderedElementsAre(2, 4, 5));
  EXPECT_THAT(Batch(), ElementsAre(Pair(1, 1), Pair(3, 1)));
}

TEST_F(PolicyTest, WhenAllHaveExpiredNothingRuns) {
  Queue({{.left = microseconds(0)}, {.left = microseconds(-5)}});
  EXPECT_THAT(Expired(), UnorderedElementsAre(1, 2));
  EXPECT_THAT(Batch(), IsEmpty());
}

TEST_F(PolicyTest, TheLayerWithTheMostUrgentClassIsServed) {
  Queue({{.layer = 0, .priority = 1}, {.layer = 1, .priority = 2}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1)));
}

TEST_F(PolicyTest, OfEquallyUrgentLayersTheOneThatWaitedLongestIsServed) {
  // The other layer's deadline is earlier: that orders a layer's requests, not layers.
  Queue({{.layer = 0, .age = microseconds(10), .left = milliseconds(2)}, {.layer = 1, .age = microseconds(20)}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(2, 1)));
}

TEST_F(PolicyTest, AnExpiredRequestLendsItsLayerNoUrgency) {
  Queue(
      {{.layer = 0, .priority = 9, .left = microseconds(0)}, {.layer = 0, .priority = 0}, {.layer = 1, .priority = 1}});
  EXPECT_THAT(Batch(), ElementsAre(Pair(3, 1)));
}

TEST_F(PolicyTest, AFloodOnOneLayerDoesNotStarveAnother) {
  Queue({{.layer = 0, .rows = 8}, {.layer = 0, .rows = 8}, {.layer = 1, .rows = 1}});
  for (int later = 0; later < 20; ++later) Queue({{.layer = 0, .rows = 8}});
  EXPECT_THAT(Serve({.max_rows = 8}), ElementsAre(1));
  EXPECT_THAT(Serve({.max_rows = 8}), ElementsAre(2));
  EXPECT_THAT(Serve({.max_rows = 8}), ElementsAre(3));  // before the 20 that came later
}

TEST_F(PolicyTest, AWindowKeepsAYoungBatchWaiting) {
  const BatchLimits limits{.max_rows = 8, .window = microseconds(50)};
  Queue({{.rows = 1, .age = microseconds(20)}, {.rows = 1, .age = microseconds(10)}});
  const BatchDecision decision = Decide(queues_, limits, now_);
  EXPECT_THAT(decision.batch, IsEmpty());
  EXPECT_EQ(decision.look_again, now_ + microseconds(30));
}

TEST_F(PolicyTest, AWindowEndsWithTheOldestRequest) {
  const BatchLimits limits{.max_rows = 8, .window = microseconds(50)};
  Queue({{.rows = 1, .priority = 0, .age = microseconds(50)}, {.rows = 1, .priority = 9}});
  EXPECT_THAT(Batch(limits), ElementsAre(Pair(2, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, AFullBatchDoesNotWaitForItsWindow) {
  Queue({{.rows = 5}, {.rows = 3}});
  EXPECT_THAT(Batch({.max_rows = 8, .window = microseconds(50)}), ElementsAre(Pair(1, 5), Pair(2, 3)));
}

TEST_F(PolicyTest, ExpiredRowsDoNotFillABatch) {
  Queue({{.rows = 5, .left = microseconds(0)}, {.rows = 3}});
  const BatchDecision decision = Decide(queues_, {.max_rows = 8, .window = microseconds(50)}, now_);
  EXPECT_THAT(decision.batch, IsEmpty());
  EXPECT_EQ(decision.expired.size(), 1u);
}

TEST_F(PolicyTest, ADeadlineWithinTheWindowEndsIt) {
  Queue({{.rows = 1}, {.rows = 1, .left = microseconds(40)}});
  EXPECT_THAT(Batch({.max_rows = 8, .window = microseconds(50)}), ElementsAre(Pair(2, 1), Pair(1, 1)));
}

TEST_F(PolicyTest, ALayerInItsWindowDoesNotHoldUpAnother) {
  Queue({{.layer = 0, .rows = 1, .priority = 9}, {.layer = 1, .rows = 8}});
  const BatchDecision decision = Decide(queues_, {.max_rows = 8, .window = microseconds(50)}, now_);
  ASSERT_EQ(decision.batch.size(), 1u);
  EXPECT_EQ(decision.batch[0].request->id, 2u);
}

}  // namespace
}  // namespace expertd
