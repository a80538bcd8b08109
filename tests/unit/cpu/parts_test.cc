// The CPU engine's parts without kernels: worker pool, row pool, routing of one row.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <cstdint>
#include <optional>
#include <thread>
#include <vector>

#include "kernels/cpu/routing.h"
#include "kernels/cpu/row_pool.h"
#include "kernels/cpu/worker_pool.h"

namespace expertd::cpu {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

TEST(WorkerPoolTest, EveryUnitIsDoneOnce) {
  for (int threads : {1, 2, 4}) {
    WorkerPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (std::int64_t grain : {1, 3, 1000}) {
      for (std::int64_t count : {0, 1, 2, 3, 4, 7, 64, 1001}) {
        std::vector<std::atomic<int>> done(count);
        pool.ParallelFor(count, grain, [&](std::int64_t begin, std::int64_t end) {
          EXPECT_LT(begin, end);
          for (std::int64_t i = begin; i < end; ++i) ++done[i];
        });
        for (std::int64_t i = 0; i < count; ++i) ASSERT_EQ(done[i], 1) << threads << " threads, " << count << " units";
      }
    }
  }
}

TEST(WorkerPoolTest, ManyShortCallsAndPausesThatPutWorkersToSleep) {
  WorkerPool pool(3);
  std::int64_t want = 0;
  std::atomic<std::int64_t> sum = 0;
  for (int call = 0; call < 3000; ++call) {
    if (call % 500 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    const std::int64_t count = call % 9;
    want += count * (count - 1) / 2;
    pool.ParallelFor(count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t i = begin; i < end; ++i) sum += i;
    });
    ASSERT_EQ(sum, want);  // all of the call's work is done and visible
  }
}

TEST(WorkerPoolTest, WorkersTakePart) {
  WorkerPool pool(2);
  // Each of the two units waits for the other: one thread alone would never end.
  std::atomic<int> arrived = 0;
  pool.ParallelFor(2, 1, [&](std::int64_t begin, std::int64_t end) {
    ASSERT_EQ(end, begin + 1);
    ++arrived;
    while (arrived < 2) std::this_thread::yield();
  });
}

TEST(RowPoolTest, SizeClassesWasteAtMostAQuarter) {
  EXPECT_EQ(RowPool::CapacityFor(1), 4096u);
  EXPECT_EQ(RowPool::CapacityFor(4096), 4096u);
  EXPECT_EQ(RowPool::CapacityFor(4097), 5120u);
  EXPECT_EQ(RowPool::CapacityFor(1 << 20), std::size_t{1} << 20);
  for (std::size_t bytes = 4096; bytes < 1 << 20; bytes += 777) {
    const std::size_t capacity = RowPool::CapacityFor(bytes);
    ASSERT_GE(capacity, bytes);
    ASSERT_LE(capacity, bytes + bytes / 4);
    ASSERT_EQ(RowPool::CapacityFor(capacity), capacity);
  }
}

TEST(RowPoolTest, BuffersAreAlignedReusedAndBounded) {
  RowPool pool(64 << 10);
  EXPECT_EQ(pool.Acquire(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(pool.Acquire((64 << 10) + 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(pool.Acquire(~std::size_t{0}).status().code(), absl::StatusCode::kResourceExhausted);
  auto first = pool.Acquire(40 << 10);
  ASSERT_TRUE(first.ok()) << first.status();
  std::byte* const data = first->data();
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(data) % 64, 0u);
  EXPECT_EQ(pool.Acquire(40 << 10).status().code(), absl::StatusCode::kResourceExhausted);
  first->Reset();
  auto again = pool.Acquire(39 << 10);  // of the same size class
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->data(), data);
  EXPECT_EQ(again->size(), std::size_t{39} << 10);
  again->Reset();
  // What is kept for reuse does not stand in the way of another size.
  EXPECT_TRUE(pool.Acquire(64 << 10).ok());
}

TEST(RowPoolTest, BuffersOutliveThePoolAndMayBeDroppedInAnyThread) {
  auto pool = std::make_optional<RowPool>(1 << 20);
  auto buffer = pool->Acquire(100);
  ASSERT_TRUE(buffer.ok());
  pool.reset();
  std::thread([moved = std::move(*buffer)]() mutable { moved.data()[99] = std::byte{1}; }).join();
}

struct Routed {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};
Routed Route(const RoutingRule& rule, std::int64_t k, const std::vector<float>& logits,
             const std::vector<float>& bias = {}) {
  LayerSpec spec;
  spec.num_experts = static_cast<std::int64_t>(logits.size());
  spec.experts_per_token = k;
  spec.routing = rule;
  Routed routed{std::vector<std::int32_t>(k, -7), std::vector<float>(k)};
  RoutingScratch scratch;
  RouteRow(spec, logits.data(), bias.empty() ? nullptr : bias.data(), scratch, routed.ids.data(),
           routed.weights.data());
  return routed;
}

TEST(RouteRowTest, BestFirstAndTiesToTheLowerId) {
  EXPECT_THAT(Route({}, 3, {1, 5, 2, 5, 5}).ids, ElementsAre(1, 3, 4));
  EXPECT_THAT(Route({}, 5, {0, 0, 0, 0, 0}).ids, ElementsAre(0, 1, 2, 3, 4));
  EXPECT_THAT(Route({}, 1, {-3}).ids, ElementsAre(0));
  EXPECT_THAT(Route({}, 1, {-3}).weights, ElementsAre(1.0f));
}

TEST(RouteRowTest, ABiasChoosesButDoesNotWeigh) {
  const Routed routed = Route({.score = Score::kSigmoid, .correction_bias = true}, 1, {0.0f, -2.0f}, {0.0f, 1.0f});
  EXPECT_THAT(routed.ids, ElementsAre(1));
  EXPECT_FLOAT_EQ(routed.weights[0], static_cast<float>(1.0 / (1.0 + std::exp(2.0))));
}

TEST(RouteRowTest, GroupsByTheirBestOrTheirTwoBest) {
  const std::vector<float> logits = {9, 0, 7, 6, 1, 1};  // three groups of two
  RoutingRule rule = {.score = Score::kRaw, .group_score = GroupScore::kMax, .n_group = 3, .topk_group = 1};
  EXPECT_THAT(Route(rule, 2, logits).ids, ElementsAre(0, 1));
  rule.group_score = GroupScore::kTop2Sum;
  EXPECT_THAT(Route(rule, 2, logits).ids, ElementsAre(2, 3));
}

TEST(RouteRowTest, WeightsAreRenormalisedAndScaled) {
  const RoutingRule rule = {.renormalise = Renormalise::kSumPlusEps, .scale = 2.5f};
  const Routed routed = Route(rule, 2, {0.1f, 0.2f, 0.3f});
  EXPECT_FLOAT_EQ(routed.weights[0] + routed.weights[1], 2.5f);
}

TEST(RouteRowTest, NaNGivesValidIdsAndNaNWeights) {
  for (Score score : {Score::kSoftmax, Score::kSigmoid, Score::kRaw}) {
    const Routed routed = Route({.score = score}, 2, {1.0f, NAN, 3.0f, 2.0f});
    EXPECT_THAT(routed.ids, ElementsAre(0, 1));
    EXPECT_THAT(routed.weights, Each(::testing::IsNan()));
  }
}

}  // namespace
}  // namespace expertd::cpu
