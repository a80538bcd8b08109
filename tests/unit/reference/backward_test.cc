#include "kernels/reference/backward.h"

#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/ops.h"
#include "tests/support/random.h"
#include "tests/support/rows.h"

namespace expertd::reference {
namespace {

std::vector<double> Normals(std::int64_t count, std::uint64_t seed) {
  expertd::testing::Random random(seed);
  std::vector<double> values(count);
  for (double& v : values) v = random.Normal();
  return values;
}

// E is large against the slots, so that some experts stay empty.
MoeProblem Problem() {
  MoeProblem p{.n = 3, .d = 5, .e = 6, .k = 2, .f = 4};
  p.rows = Normals(p.n * p.d, 1);
  p.logits = Normals(p.n * p.e, 2);
  p.gate_up = Normals(p.e * 2 * p.f * p.d, 3);
  p.down = Normals(p.e * p.d * p.f, 4);
  return p;
}

double Loss(const MoeProblem& p, const std::vector<double>& grad_out) {
  const absl::StatusOr<MoeForwardResult> forward = MoeForward(p);
  EXPECT_TRUE(forward.ok()) << forward.status();
  double loss = 0;
  for (std::size_t i = 0; i < grad_out.size(); ++i) loss += grad_out[i] * forward->out[i];
  return loss;
}

struct Case {
  const char* name;
  RoutingRule rule;
  Activation activation;
};

class MoeBackwardTest : public ::testing::TestWithParam<Case> {};
INSTANTIATE_TEST_SUITE_P(
    , MoeBackwardTest,
    ::testing::Values(
        Case{"softmax_silu", {.renormalise = Renormalise::kSumPlusEps}, Activation::kSilu},
        Case{"softmax_plain_gelu", {.scale = 2.0f}, Activation::kGelu},
        Case{"sigmoid_gelu_tanh", {.score = Score::kSigmoid}, Activation::kGeluTanh},
        Case{"softmax_of_chosen_oai", {.score = Score::kRaw, .weigh = Weigh::kSoftmaxOfChosen}, Activation::kSwigluOai},
        Case{"softmax_relu2", {}, Activation::kRelu2},
        Case{"on_input",
             {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen, .weight_on_input = true},
             Activation::kSilu}),
    [](const auto& info) { return info.param.name; });

TEST_P(MoeBackwardTest, EveryGradientIsTheCentralDifference) {
  MoeProblem p = Problem();
  p.rule = GetParam().rule;
  p.activation = GetParam().activation;
  const std::vector<double> grad_out = Normals(p.n * p.d, 5);
  const absl::StatusOr<MoeForwardResult> forward = MoeForward(p);
  ASSERT_TRUE(forward.ok()) << forward.status();
  const absl::StatusOr<MoeGradients> g = MoeBackward(p, *forward, grad_out);
  ASSERT_TRUE(g.ok()) << g.status();
  const struct {
    const char* name;
    std::vector<double> MoeProblem::*input;
    const std::vector<double>& gradient;
  } kInputs[] = {{"rows", &MoeProblem::rows, g->rows},
                 {"logits", &MoeProblem::logits, g->logits},
                 {"gate_up", &MoeProblem::gate_up, g->gate_up},
                 {"down", &MoeProblem::down, g->down}};
  constexpr double kStep = 1e-5;
  for (const auto& [name, input, gradient] : kInputs) {
    ASSERT_EQ(gradient.size(), (p.*input).size());
    std::vector<double> differences;
    for (std::size_t i = 0; i < gradient.size(); ++i) {
      MoeProblem up = p, down = p;
      (up.*input)[i] += kStep;
      (down.*input)[i] -= kStep;
      differences.push_back((Loss(up, grad_out) - Loss(down, grad_out)) / (2 * kStep));
    }
    EXPECT_LT(expertd::testing::RelativeError(gradient, differences), 1e-7) << name;
  }
}

// The catalogue's ops in f32, one after the other, give the same gradients.
TEST(MoeBackwardOpsTest, TheF32OpsComposeToTheSameGradients) {
  const MoeProblem p = Problem();
  const std::vector<double> grad_out = Normals(p.n * p.d, 5);
  const absl::StatusOr<MoeForwardResult> forward = MoeForward(p);
  ASSERT_TRUE(forward.ok()) << forward.status();
  const absl::StatusOr<MoeGradients> want = MoeBackward(p, *forward, grad_out);
  ASSERT_TRUE(want.ok()) << want.status();

  const auto f32 = [](const std::vector<double>& v) { return std::vector<float>(v.begin(), v.end()); };
  const std::int64_t slots = p.n * p.k;
  const std::vector<float> go = f32(grad_out), weights = f32(forward->topk_weights), down = f32(p.down);
  const std::vector<float> both = f32(forward->gate_up), hidden = f32(forward->hidden), x = f32(forward->x);
  const std::vector<float> expert_out = f32(forward->expert_out);
  std::vector<float> grad_expert(slots * p.d), grad_weights(slots), grad_down(p.e * p.d * p.f);
  ASSERT_TRUE(FusedWeightedScatter({.n = p.n,
                                    .d = p.d,
                                    .k = p.k,
                                    .r = slots,
                                    .dtype = DType::kF32,
                                    .grad_out = go.data(),
                                    .slot_row = forward->slot_pos.data(),
                                    .weights = weights.data(),
                                    .grad_expert = grad_expert.data()})
                  .ok());
  ASSERT_TRUE(FusedRoutingWeightGrad({.n = p.n,
                                      .d = p.d,
                                      .k = p.k,
                                      .r = slots,
                                      .dtype = DType::kF32,
                                      .expert_out = expert_out.data(),
                                      .grad_out = go.data(),
                                      .slot_row = forward->slot_pos.data(),
                                      .grad_weights = grad_weights.data()})
                  .ok());
  ASSERT_TRUE(MoeWeightGrad({.positions = slots,
                             .e = p.e,
                             .in = p.f,
                             .out_features = p.d,
                             .dtype = DType::kF32,
                             .grad_out = grad_expert.data(),
                             .x = hidden.data(),
                             .offsets = forward->offsets.data(),
                             .grad_w = grad_down.data()})
                  .ok());
  // grad_hidden = grad_expert . down, through a transposed copy of down.
  std::vector<float> down_t(down.size()), grad_hidden(slots * p.f), grad_both(slots * 2 * p.f);
  for (std::int64_t e = 0; e < p.e; ++e) {
    for (std::int64_t i = 0; i < p.d; ++i) {
      for (std::int64_t j = 0; j < p.f; ++j) down_t[(e * p.f + j) * p.d + i] = down[(e * p.d + i) * p.f + j];
    }
  }
  ASSERT_TRUE(MoeGroupedGemm({.positions = slots,
                              .e = p.e,
                              .in = p.d,
                              .out_features = p.f,
                              .dtype = DType::kF32,
                              .x = grad_expert.data(),
                              .offsets = forward->offsets.data(),
                              .w = down_t.data(),
                              .out = grad_hidden.data()})
                  .ok());
  ASSERT_TRUE(ActivationBackward({.m = slots,
                                  .f = p.f,
                                  .dtype = DType::kF32,
                                  .grad_out = grad_hidden.data(),
                                  .in = both.data(),
                                  .grad_in = grad_both.data()})
                  .ok());
  std::vector<float> grad_gate_up(p.e * 2 * p.f * p.d);
  ASSERT_TRUE(MoeWeightGrad({.positions = slots,
                             .e = p.e,
                             .in = p.d,
                             .out_features = 2 * p.f,
                             .dtype = DType::kF32,
                             .grad_out = grad_both.data(),
                             .x = x.data(),
                             .offsets = forward->offsets.data(),
                             .grad_w = grad_gate_up.data()})
                  .ok());
  const std::vector<double> w_d(grad_weights.begin(), grad_weights.end());
  const std::vector<double> d_d(grad_down.begin(), grad_down.end()), g_d(grad_gate_up.begin(), grad_gate_up.end());
  EXPECT_LT(expertd::testing::RelativeError(w_d, want->topk_weights), 1e-6);
  EXPECT_LT(expertd::testing::RelativeError(d_d, want->down), 1e-6);
  EXPECT_LT(expertd::testing::RelativeError(g_d, want->gate_up), 1e-6);
}

TEST(MoeBackwardChecksTest, RefusesWhatHasNoGradient) {
  MoeProblem p = Problem();
  p.rule.weigh = Weigh::kSparseMixer;
  EXPECT_EQ(MoeForward(p).status().message(), "rule: correction_bias and the sparse mixer have no gradient here");
  p = Problem();
  p.rows.pop_back();
  EXPECT_EQ(MoeForward(p).status().message(), "rows: 14 elements, the sizes give 15");
  p = Problem();
  p.k = 7;
  EXPECT_THAT(std::string(MoeForward(p).status().message()), ::testing::HasSubstr("experts_per_token"));
}

}  // namespace
}  // namespace expertd::reference
