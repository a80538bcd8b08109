// Batches of many segments: each with its own types, routing and shared expert; layers that hold some experts only.
#include <chrono>

#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using SegmentsTest = EngineTest;
EXPERTD_ENGINE_SUITE(SegmentsTest, ReferenceAndEngines());

LayerSpec SharedSpec() {
  LayerSpec spec = SimpleSpec(72, 8, 2, 40);
  spec.shared_intermediate_size = 24;
  spec.shared_gated = true;
  return spec;
}

// One segment of every kind, of uneven sizes, some empty.
std::vector<Part> EveryKind(std::int64_t d, std::int64_t num_experts) {
  std::vector<Part> parts;
  std::uint64_t seed = 10;
  for (const DType input : {DType::kBF16, DType::kF32}) {
    for (const DType output : {DType::kBF16, DType::kF32}) {
      for (const bool shared : {false, true}) {
        for (const std::int64_t k : {0, 1, 3}) {
          Part part = MakePart(static_cast<std::int64_t>(seed % 6), d, input, seed);
          part.output_dtype = output;
          part.shared_expert = shared;
          if (k > 0) PreRoute(part, num_experts, k, seed);
          parts.push_back(std::move(part));
          ++seed;
        }
      }
    }
  }
  return parts;
}

TEST_P(SegmentsTest, EveryKindInOneBatch) {
  const auto source = MakeRandomLayer(SharedSpec());
  const LayerPtr layer = Load(*source);
  std::vector<Part> parts = EveryKind(72, 8);
  ASSERT_EQ(RunParts(engine(), *layer, parts), absl::OkStatus());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    SCOPED_TRACE(i);
    ExpectMatchesReference(*source, parts[i]);
  }
}

TEST_P(SegmentsTest, EmptyBatches) {
  const LayerPtr layer = Load(*MakeRandomLayer(SharedSpec()));
  std::vector<Part> none, empty(3);
  for (Part& part : empty) part = MakePart(0, 72, DType::kBF16, 1);
  EXPECT_EQ(RunParts(engine(), *layer, none), absl::OkStatus());
  EXPECT_EQ(RunParts(engine(), *layer, empty), absl::OkStatus());
}

TEST_P(SegmentsTest, StagesFitIntoTheCall) {
  const LayerPtr layer = Load(*MakeRandomLayer(SharedSpec()));
  Part part = MakePart(40, 72, DType::kBF16, 1);
  part.output = Rows::Poisoned(40, 72, DType::kBF16);
  const Segment segment{.rows = 40, .input = part.input.row(0), .output = part.output.row(0)};
  StageTimes t;
  const auto start = std::chrono::steady_clock::now();
  ASSERT_EQ(engine().Run(*layer, {&segment, 1}, &t), absl::OkStatus());
  const double wall = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  for (const double stage : {t.stage_in, t.route, t.gemm, t.combine, t.stage_out}) EXPECT_GE(stage, 0.0);
  const double sum = t.stage_in + t.route + t.gemm + t.combine + t.stage_out;
  EXPECT_GT(sum, 0.0);
  EXPECT_LE(sum, wall);
}

// Rows that no one asked routing of, and rows whose routing goes back: the same bits.
TEST_P(SegmentsTest, RoutingIsReturnedWhereAskedFor) {
  LayerSpec spec = SharedSpec();
  spec.routing.renormalise = Renormalise::kSumPlusEps;
  const auto source = MakeRandomLayer(spec);
  const LayerPtr layer = Load(*source);
  Part part = MakePart(33, 72, DType::kBF16, 1);
  RunPart(engine(), *layer, part);  // asks for both
  for (std::int64_t i = 0; i < 33; ++i) {
    const std::int32_t a = part.routed_ids[i * 2], b = part.routed_ids[i * 2 + 1];
    EXPECT_TRUE(a >= 0 && a < 8 && b >= 0 && b < 8 && a != b) << a << " " << b;
    EXPECT_GE(part.routed_weights[i * 2], part.routed_weights[i * 2 + 1]) << "best first";
    EXPECT_NEAR(part.routed_weights[i * 2] + part.routed_weights[i * 2 + 1], 1.0, 1e-6);
  }
  Rows silent = Rows::Poisoned(33, 72, DType::kBF16);
  const Segment segment{.rows = 33, .input = part.input.row(0), .output = silent.row(0)};
  StageTimes times;
  ASSERT_EQ(engine().Run(*layer, {&segment, 1}, &times), absl::OkStatus());
  EXPECT_EQ(silent, part.output);

  // What the server chose, given back as pre-routed, gives the same bits.
  Part again = MakePart(33, 72, DType::kBF16, 1);
  again.k = 2;
  again.ids = part.routed_ids;
  again.weights = part.routed_weights;
  EXPECT_EQ(RunPart(engine(), *layer, again), part.output);
}

TEST_P(SegmentsTest, ShardsSkipForeignExpertsAndAddUp) {
  LayerSpec whole = SimpleSpec(72, 8, 3, 40);
  whole.shared_intermediate_size = 24;
  Part routed = MakePart(25, 72, DType::kF32, 1), pre_routed = routed;
  PreRoute(pre_routed, 8, 4, 2);
  std::vector<double> sums[2] = {std::vector<double>(25 * 72), std::vector<double>(25 * 72)};
  for (const auto& [first, held] : {std::pair(0, 3), std::pair(3, 1), std::pair(4, 4)}) {
    LayerSpec shard = whole;
    shard.first_expert = first;
    shard.held_experts = held;
    const auto source = MakeRandomLayer(shard);
    const LayerPtr layer = Load(*source);
    for (int kind = 0; kind < 2; ++kind) {
      Part part = kind == 0 ? routed : pre_routed;
      part.shared_expert = first == 0;  // one shard adds it
      const std::vector<double> output = RunPart(engine(), *layer, part).ToDoubles();
      ExpectMatchesReference(*source, part);
      for (std::size_t i = 0; i < output.size(); ++i) sums[kind][i] += output[i];
    }
  }
  const LayerPtr layer = Load(*MakeRandomLayer(whole));
  EXPECT_LE(testing::RelativeError(sums[0], RunPart(engine(), *layer, routed).ToDoubles()), 1e-5);
  EXPECT_LE(testing::RelativeError(sums[1], RunPart(engine(), *layer, pre_routed).ToDoubles()), 1e-5);
}

TEST_P(SegmentsTest, AShardWithoutExpertsAddsNothing) {
  LayerSpec spec = SimpleSpec(72, 8, 2, 40);
  spec.held_experts = 0;
  const LayerPtr layer = Load(*MakeRandomLayer(spec));
  Part part = MakePart(5, 72, DType::kBF16, 1);
  for (const double x : RunPart(engine(), *layer, part).ToDoubles()) ASSERT_EQ(x, 0.0);
}

}  // namespace
}  // namespace expertd::contract
