// A row's bits depend on the row, the layer and its segment's options, and on nothing else in the batch.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "absl/strings/str_cat.h"
#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using InvarianceTest = EngineTest;
EXPERTD_ENGINE_SUITE(InvarianceTest, Engines());

constexpr std::int64_t kRows = 300;

struct Shape {
  WeightFormat format;
  std::int64_t d, f;
  bool gated_shared;
};

constexpr Shape kShapes[] = {
    {WeightFormat::kBF16, 72, 40, true},   {WeightFormat::kBF16, 256, 128, false},
    {WeightFormat::kBF16, 33, 17, false},  {WeightFormat::kF32, 72, 40, false},
    {WeightFormat::kF16, 64, 48, false},   {WeightFormat::kFp8Block128, 160, 136, true},
    {WeightFormat::kMxfp4, 96, 64, false},
};

LayerSpec SpecOf(const Shape& shape) {
  LayerSpec spec = SimpleSpec(shape.d, 8, 3, shape.f);
  spec.expert_format = shape.format;
  spec.expert_bias = shape.format == WeightFormat::kMxfp4;
  spec.shared_intermediate_size = shape.gated_shared ? 40 : 0;
  spec.shared_gated = shape.gated_shared;
  return spec;
}

// The four kinds of segments a row can be in.
Part Kind(int kind, std::int64_t d) {
  Part part = MakePart(kRows, d, kind % 2 == 0 ? DType::kBF16 : DType::kF32, 77);
  if (kind >= 2) PreRoute(part, 8, 4, 78);
  return part;
}

// Each row run alone.
Rows Alone(Engine& engine, const Layer& layer, const Part& part) {
  Rows output = Rows::Poisoned(part.input.n(), layer.spec().hidden_size, part.output_dtype);
  for (std::int64_t i = 0; i < part.input.n(); ++i) {
    Part one = SlicePart(part, i, 1);
    const Rows row = RunPart(engine, layer, one);
    std::copy_n(row.row(0), row.row_bytes(), output.row(i));
  }
  return output;
}

// Rows of `got` that differ in any bit from the rows `first`... of `want`.
std::int64_t Differences(const Rows& got, const Rows& want, std::int64_t first) {
  std::int64_t differences = 0;
  for (std::int64_t i = 0; i < got.n(); ++i) differences += got.Slice(i, 1) == want.Slice(first + i, 1) ? 0 : 1;
  return differences;
}

// Calls test(layer, part, alone) for every shape and kind of segment.
template <class Test>
void ForEveryKind(Engine& engine, const Test& test) {
  for (const Shape& shape : kShapes) {
    const auto source = MakeRandomLayer(SpecOf(shape));
    const auto layer = engine.LoadLayer(*source);
    ASSERT_TRUE(layer.ok()) << layer.status();
    for (int kind = 0; kind < 4; ++kind) {
      SCOPED_TRACE(absl::StrCat(WeightFormatName(shape.format), " D ", shape.d, " F ", shape.f, " kind ", kind));
      const Part part = Kind(kind, shape.d);
      test(**layer, part, Alone(engine, **layer, part));
    }
  }
}

TEST_P(InvarianceTest, InEveryBatchSize) {
  ForEveryKind(engine(), [&](const Layer& layer, const Part& part, const Rows& alone) {
    for (const std::int64_t n : {2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 300}) {
      Part some = SlicePart(part, 0, n);
      EXPECT_EQ(Differences(RunPart(engine(), layer, some), alone, 0), 0) << "N = " << n;
    }
  });
}

TEST_P(InvarianceTest, InAnySplitAmongRandomNeighbours) {
  ForEveryKind(engine(), [&](const Layer& layer, const Part& part, const Rows& alone) {
    for (std::uint64_t round = 0; round < 4; ++round) {
      Random random(round);
      std::vector<Part> parts;
      std::vector<std::int64_t> first;  // of ours; -1 for neighbours
      for (std::int64_t at = 0; at < kRows;) {
        const std::int64_t count = std::min(kRows - at, 1 + random.Below(round == 0 ? 3 : 90));
        parts.push_back(SlicePart(part, at, count));
        first.push_back(at);
        at += count;
        if (random.Below(2) == 0) continue;
        const int kind = static_cast<int>(random.Below(4));
        Part neighbour = SlicePart(Kind(kind, layer.spec().hidden_size), random.Below(200), random.Below(40));
        neighbour.shared_expert = random.Below(2) == 0;
        neighbour.output_dtype = random.Below(2) == 0 ? DType::kBF16 : DType::kF32;
        parts.push_back(std::move(neighbour));
        first.push_back(-1);
      }
      ASSERT_EQ(RunParts(engine(), layer, parts), absl::OkStatus());
      for (std::size_t i = 0; i < parts.size(); ++i) {
        if (first[i] < 0) continue;
        EXPECT_EQ(Differences(parts[i].output, alone, first[i]), 0) << "segment " << i;
      }
    }
  });
}

TEST_P(InvarianceTest, WithAllRowsOnOneExpert) {
  for (const Shape& shape : kShapes) {
    const LayerPtr layer = Load(*MakeRandomLayer(SpecOf(shape)));
    Part part = MakePart(129, shape.d, DType::kBF16, 1);
    part.k = 2;
    for (int i = 0; i < 129; ++i) {
      part.ids.insert(part.ids.end(), {i % 2 == 0 ? 6 : -1, 3});
      part.weights.insert(part.weights.end(), {0.5f, 1.5f});
    }
    const Rows together = RunPart(engine(), *layer, part);
    EXPECT_EQ(Differences(together, Alone(engine(), *layer, part), 0), 0) << WeightFormatName(shape.format);
  }
}

TEST_P(InvarianceTest, ForAnyNumberOfThreads) {
  const auto source = MakeRandomLayer(SpecOf(kShapes[0]));
  std::map<std::string, Rows> outputs;  // by numerics id
  for (const int threads : {1, 2, 3, 7}) {
    const std::unique_ptr<Engine> engine = Make({.threads = threads});
    const auto layer = engine->LoadLayer(*source);
    ASSERT_TRUE(layer.ok()) << layer.status();
    Part part = Kind(0, 72);
    const Rows output = RunPart(*engine, **layer, part);
    EXPECT_EQ(outputs.emplace(engine->info().numerics_id, output).first->second, output) << threads << " threads";
  }
}

TEST_P(InvarianceTest, BeyondTheEnginesBatchLimit) {
  const auto source = MakeRandomLayer(SpecOf(kShapes[0]));
  const LayerPtr layer = Load(*source);
  const std::unique_ptr<Engine> small = Make({.max_batch_rows = 64});
  const auto small_layer = small->LoadLayer(*source);
  ASSERT_TRUE(small_layer.ok()) << small_layer.status();
  Part part = Kind(0, 72);
  const Rows output = RunPart(engine(), *layer, part);
  std::vector<Part> parts = {part};
  const absl::Status status = RunParts(*small, **small_layer, parts);
  // An engine may split the batch itself or ask for that; it never answers with other bits.
  if (status.ok()) {
    EXPECT_EQ(parts[0].output, output);
  } else {
    EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  }
}

TEST_P(InvarianceTest, NanAndInfinityStayInTheirRow) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  ForEveryKind(engine(), [&](const Layer& layer, const Part& part, const Rows& alone) {
    constexpr std::int64_t kN = 40;
    for (const float poison : {std::nanf(""), kInf, -kInf, std::numeric_limits<float>::max()}) {
      Part some = SlicePart(part, 0, kN);
      some.input.Set(7, layer.spec().hidden_size / 2, poison);
      some.input.Set(39, 0, poison);
      const Rows output = RunPart(engine(), layer, some);
      for (std::int64_t i = 0; i < kN; ++i) {
        if (i == 7 || i == 39) continue;
        EXPECT_EQ(output.Slice(i, 1), alone.Slice(i, 1)) << "row " << i << ", " << poison;
      }
      for (const std::int32_t id : some.routed_ids) EXPECT_TRUE(id >= 0 && id < layer.spec().num_experts) << id;
      const bool has_experts = some.k == 0 || some.ids[7 * 4] >= 0 || some.ids[7 * 4 + 1] >= 0;
      if (std::isnan(poison) && has_experts) {
        for (std::int64_t j = 0; j < layer.spec().hidden_size; ++j) ASSERT_TRUE(std::isnan(output.At(7, j))) << j;
      }
    }
  });
}

TEST_P(InvarianceTest, NanPassesThroughEveryActivation) {
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu,
                                      Activation::kRelu2, Activation::kSwigluOai}) {
    LayerSpec spec = SimpleSpec(64, 4, 2, 32);
    spec.activation = activation;
    const LayerPtr layer = Load(*MakeRandomLayer(spec));
    for (const DType dtype : {DType::kBF16, DType::kF32}) {
      Part part = MakePart(3, 64, dtype, 1);
      PreRoute(part, 4, 2, 1, false);
      part.input.Set(1, 3, std::nanf(""));
      const Rows output = RunPart(engine(), *layer, part);
      EXPECT_TRUE(std::isnan(output.At(1, 0))) << ActivationName(activation);
      EXPECT_TRUE(std::isfinite(output.At(0, 0)) && std::isfinite(output.At(2, 0)));
    }
  }
}

}  // namespace
}  // namespace expertd::contract
