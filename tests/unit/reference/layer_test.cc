#include "kernels/reference/layer.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/ops.h"
#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd::reference {
namespace {

using expertd::testing::MakeRandomLayer;
using expertd::testing::RelativeError;
using expertd::testing::Rows;
using expertd::testing::SimpleSpec;
using expertd::testing::WeightLayout;

LayerRows RandomRows(std::int64_t n, std::int64_t d) {
  return {.n = n, .rows = Rows::Random(n, d, DType::kF32, 9).ToDoubles()};
}

std::vector<float> Flatten(const WeightView& w) {
  std::vector<float> values;
  for (std::int64_t o = 0; o < w.out; ++o) {
    for (std::int64_t i = 0; i < w.in; ++i) values.push_back(static_cast<float>(w.At(o, i)));
  }
  return values;
}

// The layer against the catalogue's ops, which read dense f32 copies of the same weights.
TEST(RunLayerTest, AgreesWithTheOps) {
  constexpr std::int64_t kN = 7, kD = 33, kE = 5, kK = 3, kF = 17;
  for (const bool on_input : {false, true}) {
    LayerSpec spec = SimpleSpec(kD, kE, kK, kF);
    spec.routing.weight_on_input = on_input;
    spec.activation = Activation::kGeluTanh;
    const auto source = MakeRandomLayer(spec, {.layout = WeightLayout::kInterleavedColumns});
    const LayerRows rows = RandomRows(kN, kD);
    const LayerResult result = RunLayer(*source, rows);

    const std::vector<float> x(rows.rows.begin(), rows.rows.end()), router = Flatten(source->router().weight);
    std::vector<float> gate_up, down, logits(kN * kE), weights(kN * kK), out(kN * kD);
    for (std::int64_t e = 0; e < kE; ++e) {
      for (const WeightView& half : {source->expert(e).gate, source->expert(e).up}) {
        const std::vector<float> flat = Flatten(half);
        gate_up.insert(gate_up.end(), flat.begin(), flat.end());
      }
      const std::vector<float> flat = Flatten(source->expert(e).down);
      down.insert(down.end(), flat.begin(), flat.end());
    }
    const std::int32_t one_group[] = {0, kN};
    std::vector<std::int32_t> ids(kN * kK);
    ASSERT_TRUE(MoeGroupedGemm({.positions = kN,
                                .e = 1,
                                .in = kD,
                                .out_features = kE,
                                .dtype = DType::kF32,
                                .x = x.data(),
                                .offsets = one_group,
                                .w = router.data(),
                                .out = logits.data()})
                    .ok());
    ASSERT_TRUE(FusedTopkRouting({.n = kN,
                                  .e = kE,
                                  .k = kK,
                                  .rule = spec.routing,
                                  .logits = logits.data(),
                                  .weights = weights.data(),
                                  .ids = ids.data()})
                    .ok());
    ASSERT_TRUE(FusedMoeForward({.n = kN,
                                 .d = kD,
                                 .e = kE,
                                 .k = kK,
                                 .f = kF,
                                 .activation = spec.activation,
                                 .weight_on_input = on_input,
                                 .dtype = DType::kF32,
                                 .out_dtype = DType::kF32,
                                 .rows = x.data(),
                                 .ids = ids.data(),
                                 .weights = weights.data(),
                                 .gate_up = gate_up.data(),
                                 .down = down.data(),
                                 .out = out.data()})
                    .ok());
    EXPECT_EQ(result.topk_ids, ids);
    EXPECT_LT(RelativeError(std::vector<double>(out.begin(), out.end()), result.output), 1e-6);
  }
}

TEST(RunLayerTest, PreRoutedByItsOwnRoutingIsTheSame) {
  LayerSpec spec = SimpleSpec(16, 8, 3, 8);
  const auto source = MakeRandomLayer(spec);
  LayerRows rows = RandomRows(4, 16);
  const LayerResult routed = RunLayer(*source, rows);
  rows.k = 3;
  rows.topk_ids = routed.topk_ids;
  rows.topk_weights = routed.topk_weights;
  EXPECT_EQ(RunLayer(*source, rows).output, routed.output);
}

TEST(RunLayerTest, UnusedAndForeignSlotsAreSkipped) {
  LayerSpec spec = SimpleSpec(16, 8, 2, 8);
  spec.first_expert = 2;
  spec.held_experts = 3;
  const auto source = MakeRandomLayer(spec);
  LayerRows rows = RandomRows(2, 16);
  rows.k = 4;
  rows.topk_ids = {0, 3, -1, 7, -1, 5, 1, -1};
  rows.topk_weights = {1, 2, NAN, 4, 5, 6, 7, 8};
  const LayerResult all = RunLayer(*source, rows);
  LayerRows one = rows;
  one.k = 1;
  one.topk_ids = {3, -1};
  one.topk_weights = {2, 0};
  EXPECT_EQ(all.output, RunLayer(*source, one).output);
  EXPECT_THAT(std::vector<double>(all.output.begin() + 16, all.output.end()), ::testing::Each(0.0));
}

TEST(RunLayerTest, SharedExpertIsAnExpertWithWeightOneOrItsGate) {
  for (const bool gated : {false, true}) {
    LayerSpec spec = SimpleSpec(16, 4, 2, 8);
    spec.shared_intermediate_size = 12;
    spec.shared_gated = gated;
    const auto source = MakeRandomLayer(spec);
    LayerRows rows = RandomRows(20, 16);
    const LayerResult with = RunLayer(*source, rows);
    rows.shared_expert = false;
    const LayerResult without = RunLayer(*source, rows);
    const ExpertWeights w = source->shared();
    for (std::int64_t i = 0; i < rows.n; ++i) {
      const double* const x = &rows.rows[i * 16];
      double gate_logit = 0;
      for (std::int64_t j = 0; j < 16; ++j) gate_logit += x[j] * source->shared_gate().At(j);
      const double factor = gated ? 1 / (1 + std::exp(-gate_logit)) : 1.0;
      for (std::int64_t o = 0; o < 16; ++o) {
        double y = 0;
        for (std::int64_t f = 0; f < 12; ++f) {
          double g = 0, u = 0;
          for (std::int64_t j = 0; j < 16; ++j) g += x[j] * w.gate.At(f, j), u += x[j] * w.up.At(f, j);
          y += w.down.At(o, f) * g / (1 + std::exp(-g)) * u;
        }
        EXPECT_NEAR(with.output[i * 16 + o], without.output[i * 16 + o] + factor * y, 1e-12);
      }
    }
  }
}

TEST(RunLayerTest, BiasesAreAdded) {
  LayerSpec spec = SimpleSpec(4, 1, 1, 3);
  spec.expert_bias = true;
  spec.routing.router_bias = true;
  spec.activation = Activation::kSwigluOai;
  const auto source = MakeRandomLayer(spec, {.layout = WeightLayout::kInterleavedColumns});
  LayerRows zero{.n = 1, .rows = std::vector<double>(4)};
  const ExpertWeights w = source->expert(0);
  std::vector<double> h;
  for (std::int64_t f = 0; f < 3; ++f) {
    const double g = w.gate_bias.At(f), u = w.up_bias.At(f);
    h.push_back((u + 1) * g / (1 + std::exp(-1.702 * g)));
  }
  std::vector<double> want;
  for (std::int64_t o = 0; o < 4; ++o) {
    want.push_back(w.down_bias.At(o));
    for (std::int64_t f = 0; f < 3; ++f) want.back() += w.down.At(o, f) * h[f];
  }
  EXPECT_LT(RelativeError(RunLayer(*source, zero).output, want), 1e-6);  // swiglu's alpha is an f32
}

TEST(RunLayerTest, NoRows) {
  const auto source = MakeRandomLayer(SimpleSpec(4, 2, 1, 3));
  EXPECT_TRUE(RunLayer(*source, {}).output.empty());
}

}  // namespace
}  // namespace expertd::reference
