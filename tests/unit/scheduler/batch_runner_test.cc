#include "server/scheduler/batch_runner.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <set>

#include "tests/unit/scheduler/puppets.h"

namespace expertd {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class BatchRunnerTest : public ::testing::Test {
 protected:
  // Jobs 0, 1, ... with so many rows each, run as one batch.
  absl::Status Run(const std::vector<std::int64_t>& rows) {
    for (const std::int64_t count : rows) {
      jobs_.push_back(callers_.MakeJob(static_cast<int>(jobs_.size()), {.layer = layer_, .rows = count}));
      pieces_.push_back({.job = jobs_.back().get(), .first_row = 0, .rows = count});
    }
    return RunBatch(
        engine_, *layer_, absl::MakeSpan(pieces_),
        [&](std::int64_t rows, std::int64_t requests, const StageTimes&) { done_.emplace_back(rows, requests); });
  }
  std::vector<absl::StatusCode> Codes() const {
    std::vector<absl::StatusCode> codes;
    for (const Piece& piece : pieces_) codes.push_back(piece.status.code());
    return codes;
  }
  bool OutputRight(int tag) const {
    const Job& job = *jobs_[tag];
    const float* in = reinterpret_cast<const float*>(job.input.data());
    const float* out = reinterpret_cast<const float*>(job.output.data());
    for (std::int64_t row = 0; row < job.rows; ++row) {
      if (out[row] != 2 * in[row]) return false;
    }
    return true;
  }
  // Fails every batch that holds one of these tags.
  void Poison(const std::set<int>& tags, absl::Status status) {
    engine_.verdict = [tags, status](const RanBatch& batch) {
      const bool hit = std::any_of(batch.begin(), batch.end(), [&](const Ran& ran) { return tags.count(ran.tag) > 0; });
      return hit ? status : absl::OkStatus();
    };
  }

  LayerPtr layer_ = MakeLayer(0);
  PuppetEngine engine_;
  Callers callers_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::vector<Piece> pieces_;
  std::vector<std::pair<std::int64_t, std::int64_t>> done_;
};

constexpr auto kOk = absl::StatusCode::kOk;
constexpr auto kBad = absl::StatusCode::kUnknown;

TEST_F(BatchRunnerTest, AGoodBatchRunsOnce) {
  EXPECT_TRUE(Run({2, 3}).ok());
  EXPECT_THAT(Codes(), ElementsAre(kOk, kOk));
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{0, 0, 2}, {1, 0, 3}}));
  EXPECT_THAT(done_, ElementsAre(std::pair(5, 2)));
  EXPECT_EQ(pieces_[1].batch_rows, 5);
  EXPECT_EQ(pieces_[1].batch_requests, 2);
  EXPECT_EQ(pieces_[0].stages.gemm, 3);
}

TEST_F(BatchRunnerTest, AFailingBatchIsHalvedUntilOnlyTheCulpritFails) {
  Poison({2}, absl::UnknownError("bad rows"));
  EXPECT_TRUE(Run({1, 1, 1, 1, 1}).ok());
  EXPECT_THAT(Codes(), ElementsAre(kOk, kOk, kBad, kOk, kOk));
  EXPECT_EQ(pieces_[2].status.message(), "bad rows");
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{0, 0, 1}, {1, 0, 1}, {2, 0, 1}, {3, 0, 1}, {4, 0, 1}},
                                             RanBatch{{0, 0, 1}, {1, 0, 1}}, RanBatch{{2, 0, 1}, {3, 0, 1}, {4, 0, 1}},
                                             RanBatch{{2, 0, 1}}, RanBatch{{3, 0, 1}, {4, 0, 1}}));
  for (const int tag : {0, 1, 3, 4}) EXPECT_TRUE(OutputRight(tag)) << tag;
  EXPECT_EQ(pieces_[4].batch_requests, 2);
}

TEST_F(BatchRunnerTest, SeveralCulpritsAreAllFound) {
  Poison({0, 3, 6}, absl::UnknownError("bad rows"));
  EXPECT_TRUE(Run({1, 1, 1, 1, 1, 1, 1}).ok());
  EXPECT_THAT(Codes(), ElementsAre(kBad, kOk, kOk, kBad, kOk, kOk, kBad));
}

TEST_F(BatchRunnerTest, ALoneCulpritIsNotTriedAgain) {
  Poison({0}, absl::UnknownError("bad rows"));
  EXPECT_TRUE(Run({8}).ok());
  EXPECT_THAT(Codes(), ElementsAre(kBad));
  EXPECT_EQ(engine_.batches().size(), 1u);
  EXPECT_THAT(done_, IsEmpty());
}

// Fails every batch of more than `rows` rows.
std::function<absl::Status(const RanBatch&)> MemoryFor(std::int64_t rows) {
  return [rows](const RanBatch& batch) {
    std::int64_t sum = 0;
    for (const Ran& ran : batch) sum += ran.rows;
    return sum > rows ? absl::ResourceExhaustedError("no memory") : absl::OkStatus();
  };
}

TEST_F(BatchRunnerTest, WithoutMemoryForTheBatchItsHalvesRun) {
  engine_.verdict = MemoryFor(4);
  EXPECT_TRUE(Run({2, 2, 2}).ok());
  EXPECT_THAT(Codes(), ElementsAre(kOk, kOk, kOk));
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{0, 0, 2}, {1, 0, 2}, {2, 0, 2}}, RanBatch{{0, 0, 2}},
                                             RanBatch{{1, 0, 2}, {2, 0, 2}}));
}

TEST_F(BatchRunnerTest, WithoutMemoryForARequestItsRowsAreHalved) {
  engine_.verdict = MemoryFor(2);
  EXPECT_TRUE(Run({5}).ok());
  EXPECT_THAT(Codes(), ElementsAre(kOk));
  EXPECT_TRUE(OutputRight(0));
  EXPECT_THAT(engine_.batches(), ElementsAre(RanBatch{{0, 0, 5}}, RanBatch{{0, 0, 2}}, RanBatch{{0, 2, 3}},
                                             RanBatch{{0, 2, 1}}, RanBatch{{0, 3, 2}}));
  EXPECT_EQ(pieces_[0].stages.gemm, 9) << "the sum over the three that succeeded";
  EXPECT_EQ(pieces_[0].batch_rows, 2);
}

TEST_F(BatchRunnerTest, WithoutMemoryForARowTheRequestFailsAndTheRestIsNotTried) {
  engine_.verdict = MemoryFor(0);
  EXPECT_TRUE(Run({8}).ok());
  EXPECT_THAT(Codes(), ElementsAre(absl::StatusCode::kResourceExhausted));
  EXPECT_EQ(engine_.batches().size(), 4u);  // 8, 4, 2, 1 rows
}

TEST_F(BatchRunnerTest, ALostDeviceIsNotTriedAgain) {
  Poison({1}, absl::InternalError("device lost"));
  EXPECT_EQ(Run({1, 1}), absl::InternalError("device lost"));
  EXPECT_THAT(Codes(), Each(absl::StatusCode::kInternal));
  EXPECT_EQ(engine_.batches().size(), 1u);
}

TEST_F(BatchRunnerTest, ADeviceLostWhileHalvingKeepsWhatWasComputed) {
  engine_.verdict = [](const RanBatch& batch) {
    if (batch.size() > 1) return absl::UnknownError("bad rows");
    return batch[0].tag == 1 ? absl::InternalError("device lost") : absl::OkStatus();
  };
  EXPECT_EQ(Run({1, 1, 1, 1}), absl::InternalError("device lost"));
  constexpr auto kLost = absl::StatusCode::kInternal;
  EXPECT_THAT(Codes(), ElementsAre(kOk, kLost, kLost, kLost));
}

class SegmentTest : public ::testing::Test {
 protected:
  std::unique_ptr<Job> MakeJob(std::int64_t rows) { return callers_.MakeJob(1, {.layer = MakeLayer(0), .rows = rows}); }
  void AddRouting(Job& job) {
    routing_.resize(1024);
    job.routing = RowBuffer(routing_.data(), routing_.size(), routing_.size(), nullptr);
  }

  Callers callers_;
  alignas(64) std::vector<std::byte> routing_;
};

TEST_F(SegmentTest, PointsAtItsRows) {
  const auto job = MakeJob(10);
  const Segment segment = SegmentOf({.job = job.get(), .first_row = 4, .rows = 3});
  EXPECT_EQ(segment.rows, 3);
  EXPECT_EQ(segment.input, job->input.data() + 16);
  EXPECT_EQ(segment.output, job->output.data() + 16);
  EXPECT_EQ(segment.input_dtype, DType::kF32);
  EXPECT_EQ(segment.k, 0);
  EXPECT_EQ(segment.topk_ids, nullptr);
  EXPECT_EQ(segment.routed_ids, nullptr);
}

TEST_F(SegmentTest, InputAndOutputRowsMayDifferInSize) {
  const auto job = MakeJob(10);
  job->input_dtype = DType::kBF16;
  job->shared_expert = false;
  const Segment segment = SegmentOf({.job = job.get(), .first_row = 4, .rows = 3});
  EXPECT_EQ(segment.input, job->input.data() + 8);
  EXPECT_EQ(segment.output, job->output.data() + 16);
  EXPECT_FALSE(segment.shared_expert);
}

TEST_F(SegmentTest, PreRoutedTakesTheCallersIdsAndWeights) {
  const auto job = MakeJob(10);
  AddRouting(*job);
  job->k = 3;
  job->return_routing = true;  // the caller's own: nothing for the engine to write
  const Segment segment = SegmentOf({.job = job.get(), .first_row = 4, .rows = 3});
  EXPECT_EQ(segment.k, 3);
  EXPECT_EQ(reinterpret_cast<const std::byte*>(segment.topk_ids), job->routing.data() + 4 * 3 * 4);
  EXPECT_EQ(reinterpret_cast<const std::byte*>(segment.topk_weights), job->routing.data() + (10 + 4) * 3 * 4);
  EXPECT_EQ(segment.routed_ids, nullptr);
}

TEST_F(SegmentTest, ServerRoutedReturnsTheRoutersChoice) {
  const auto job = MakeJob(10);
  AddRouting(*job);
  job->return_routing = true;
  const Segment segment = SegmentOf({.job = job.get(), .first_row = 4, .rows = 3});
  EXPECT_EQ(segment.k, 0);
  EXPECT_EQ(reinterpret_cast<std::byte*>(segment.routed_ids), job->routing.data() + 4 * 2 * 4);  // the layer's K is 2
  EXPECT_EQ(reinterpret_cast<std::byte*>(segment.routed_weights), job->routing.data() + (10 + 4) * 2 * 4);
  EXPECT_EQ(segment.topk_ids, nullptr);
}

}  // namespace
}  // namespace expertd
