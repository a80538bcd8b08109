#include <cmath>
#include <numeric>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/layer.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"
#include "tests/support/random.h"

namespace expertd::reference {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;

auto Near(double x) { return DoubleNear(x, 1e-12); }

TEST(RouteTest, SoftmaxOverAllThenRenormalised) {
  const std::vector<double> logits = {std::log(1.0), std::log(4.0), std::log(2.0), std::log(3.0)};
  RoutingRule rule;
  EXPECT_THAT(Route(rule, 2, logits, {}).ids, ElementsAre(1, 3));
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(0.4), Near(0.3)));
  rule.renormalise = Renormalise::kSumPlusEps;
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(4.0 / 7), Near(3.0 / 7)));
  rule.renormalise_eps = 0.25f;
  rule.scale = 2.0f;
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(2 * 0.4 / 0.95), Near(2 * 0.3 / 0.95)));
  rule.renormalise = Renormalise::kMaxSumEps;
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(2 * 0.4 / 0.7), Near(2 * 0.3 / 0.7)));
  rule.renormalise_eps = 0.875f;
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(2 * 0.4 / 0.875), Near(2 * 0.3 / 0.875)));
}

TEST(RouteTest, CorrectionBiasChoosesButDoesNotWeigh) {
  const std::vector<double> logits = {0.0, std::log(3.0), -std::log(3.0)};  // sigmoids 1/2, 3/4, 1/4
  const RoutingRule rule{.score = Score::kSigmoid, .correction_bias = true};
  const Routing routing = Route(rule, 2, logits, {0.0, 0.0, 1.0});
  EXPECT_THAT(routing.ids, ElementsAre(2, 1));
  EXPECT_THAT(routing.weights, ElementsAre(Near(0.25), Near(0.75)));
}

TEST(RouteTest, GroupsByTheirBestScore) {
  // Softmax scores in proportion 8 1 | 7 6 | 2 3: one group: the first.
  std::vector<double> logits;
  for (const double p : {8.0, 1.0, 7.0, 6.0, 2.0, 3.0}) logits.push_back(std::log(p));
  RoutingRule rule{.group_score = GroupScore::kMax, .n_group = 3, .topk_group = 1};
  EXPECT_THAT(Route(rule, 2, logits, {}).ids, ElementsAre(0, 1));
  rule.topk_group = 2;
  EXPECT_THAT(Route(rule, 2, logits, {}).ids, ElementsAre(0, 2));
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(8.0 / 27), Near(7.0 / 27)));
}

TEST(RouteTest, GroupsByTheSumOfTwo) {
  const std::vector<double> logits = {0.0, -9.0, -0.5, -0.5, -2.0, -3.0};
  RoutingRule rule{.score = Score::kSigmoid, .group_score = GroupScore::kTop2Sum, .n_group = 3, .topk_group = 1};
  EXPECT_THAT(Route(rule, 2, logits, {}).ids, ElementsAre(2, 3)) << "the second group, though the first has the best";
}

TEST(RouteTest, MaskedExpertsNeverReturnWhenScoresAreNegative) {
  // The bias makes every score of the chosen group negative: masking with 0 would let the others back in.
  const RoutingRule rule{.score = Score::kSigmoid,
                         .correction_bias = true,
                         .group_score = GroupScore::kTop2Sum,
                         .n_group = 2,
                         .topk_group = 1};
  EXPECT_THAT(Route(rule, 2, {0, 0, 0, 0}, {-3, -3, -2, -2}).ids, ElementsAre(2, 3));
}

TEST(RouteTest, SoftmaxAndSigmoidOfTheChosen) {
  const std::vector<double> logits = {-5.0, std::log(3.0), 0.0, -6.0};
  RoutingRule rule{.score = Score::kRaw, .weigh = Weigh::kSoftmaxOfChosen};
  EXPECT_THAT(Route(rule, 2, logits, {}).ids, ElementsAre(1, 2));
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(0.75), Near(0.25)));
  rule.weigh = Weigh::kSigmoidOfChosen;
  EXPECT_THAT(Route(rule, 2, logits, {}).weights, ElementsAre(Near(0.75), Near(0.5)));
}

TEST(RouteTest, SparseMixer) {
  // jitter 0.01: logits within 2 % of the largest share its softmax.
  const RoutingRule rule{.score = Score::kRaw, .weigh = Weigh::kSparseMixer, .jitter_eps = 0.01f};
  const Routing routing = Route(rule, 2, {9.9, 10.0, 5.0, 9.0}, {});
  EXPECT_THAT(routing.ids, ElementsAre(1, 0));
  EXPECT_THAT(routing.weights, ElementsAre(Near(1 / (1 + std::exp(-0.1))), Near(1.0)));
  EXPECT_NEAR(routing.margin, 0.005, 1e-7) << "10.0 against 9.9";
  EXPECT_LT(Route(rule, 2, {9.8, 10.0, 5.0, 9.0}, {}).margin, kRoutingTie) << "9.8 is on the border of the mask";
  // All negative: distances are relative to the magnitude of the smaller one.
  const Routing negative = Route(rule, 2, {-10.0, -9.9, -20.0}, {});
  EXPECT_THAT(negative.ids, ElementsAre(1, 0));
  EXPECT_THAT(negative.weights, ElementsAre(Near(1 / (1 + std::exp(-0.1))), Near(1.0)));
  // Equal logits: the lower id, and no division by zero.
  EXPECT_THAT(Route(rule, 2, {0.0, 0.0, 0.0}, {}).ids, ElementsAre(0, 1));
  EXPECT_THAT(Route(rule, 2, {0.0, 0.0, 0.0}, {}).weights, ElementsAre(Near(1.0 / 3), Near(0.5)));
}

TEST(RouteTest, TiesGoToTheLowerId) {
  EXPECT_THAT(Route({}, 3, {1.0, 2.0, 1.0, 2.0, 1.0}, {}).ids, ElementsAre(1, 3, 0));
  RoutingRule rule{.group_score = GroupScore::kMax, .n_group = 2, .topk_group = 1};
  EXPECT_THAT(Route(rule, 2, {1.0, 1.0, 1.0, 1.0}, {}).ids, ElementsAre(0, 1));
}

TEST(RouteTest, NanLogitsGiveValidIdsAndNanWeights) {
  for (const Weigh weigh : {Weigh::kScore, Weigh::kSoftmaxOfChosen, Weigh::kSparseMixer}) {
    const Routing routing = Route({.score = Score::kRaw, .weigh = weigh}, 2, {0.0, 1.0, std::nan(""), 3.0}, {});
    EXPECT_THAT(routing.ids, ElementsAre(0, 1));
    EXPECT_TRUE(std::isnan(routing.weights[0]) && std::isnan(routing.weights[1]));
  }
}

TEST(RouteMarginTest, SaysHowClearTheChoiceIs) {
  const RoutingRule raw{.score = Score::kRaw};
  EXPECT_EQ(Route(raw, 1, {1.0, 1.0}, {}).margin, 0.0);
  EXPECT_LT(Route(raw, 1, {1.0, 1.0 + 1e-7}, {}).margin, kRoutingTie);
  EXPECT_GT(Route(raw, 1, {1.0, 1.0 + 1e-4}, {}).margin, kRoutingTie);
  EXPECT_EQ(Route(raw, 2, {1.0, 2.0}, {}).margin, std::numeric_limits<double>::infinity()) << "nothing is left out";
  // Scores that saturate in f32 cannot be told apart there.
  EXPECT_LT(Route({.score = Score::kSigmoid}, 1, {30.0, 31.0}, {}).margin, kRoutingTie);
  // Softmax scores keep their relative distance however small they are.
  EXPECT_GT(Route({}, 2, {0.0, -50.0, -51.0}, {}).margin, 1e-3);
  // A close call between groups counts, although the experts are far apart.
  const RoutingRule groups{.score = Score::kRaw, .group_score = GroupScore::kMax, .n_group = 2, .topk_group = 1};
  EXPECT_LT(Route(groups, 1, {5.0, 1.0, 5.0 + 1e-8, 2.0}, {}).margin, kRoutingTie);
}

TEST(FusedTopkRoutingTest, RoutesEachRow) {
  const float logits[] = {0, 1, 2, 2, 1, 0};
  float weights[2] = {-9, -9};
  std::int32_t ids[2] = {-9, -9};
  RoutingRule rule{.renormalise = Renormalise::kSumPlusEps, .scale = 3};
  ASSERT_TRUE(
      FusedTopkRouting({.n = 2, .e = 3, .k = 1, .rule = rule, .logits = logits, .weights = weights, .ids = ids}).ok());
  EXPECT_THAT(ids, ElementsAre(2, 0));
  EXPECT_THAT(weights, ElementsAre(3.0f, 3.0f));
}

struct GradCase {
  const char* name;
  RoutingRule rule;
};

class RouteGradTest : public ::testing::TestWithParam<GradCase> {};
INSTANTIATE_TEST_SUITE_P(
    , RouteGradTest,
    ::testing::Values(GradCase{"softmax", {}},
                      GradCase{"softmax_renormalised", {.renormalise = Renormalise::kSumPlusEps}},
                      GradCase{"softmax_eps_scale",
                               {.renormalise = Renormalise::kSumPlusEps, .renormalise_eps = 0.5f, .scale = 2.5f}},
                      GradCase{"softmax_max_sum", {.renormalise = Renormalise::kMaxSumEps, .renormalise_eps = 1e-12f}},
                      GradCase{"softmax_max_eps", {.renormalise = Renormalise::kMaxSumEps, .renormalise_eps = 5.0f}},
                      GradCase{"softmax_groups",
                               {.group_score = GroupScore::kMax, .n_group = 2, .topk_group = 1, .scale = 16.0f}},
                      GradCase{"sigmoid", {.score = Score::kSigmoid, .renormalise = Renormalise::kSumPlusEps}},
                      GradCase{"raw", {.score = Score::kRaw}},
                      GradCase{"softmax_of_chosen", {.score = Score::kRaw, .weigh = Weigh::kSoftmaxOfChosen}},
                      GradCase{"sigmoid_of_chosen", {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen}}),
    [](const auto& info) { return info.param.name; });

TEST_P(RouteGradTest, IsTheCentralDifference) {
  constexpr std::int64_t kE = 8, kK = 3;
  constexpr double kStep = 1e-6;
  expertd::testing::Random random(11);
  std::vector<double> logits(kE), grad_weights(kK);
  for (double& x : logits) x = random.Normal();
  for (double& x : grad_weights) x = random.Normal();
  const auto loss = [&](const std::vector<double>& x) {
    const Routing routing = Route(GetParam().rule, kK, x, {});
    return std::inner_product(grad_weights.begin(), grad_weights.end(), routing.weights.begin(), 0.0);
  };
  const std::vector<double> grad =
      RouteGrad(GetParam().rule, logits, Route(GetParam().rule, kK, logits, {}), grad_weights);
  for (std::int64_t e = 0; e < kE; ++e) {
    std::vector<double> up = logits, down = logits;
    up[e] += kStep;
    down[e] -= kStep;
    EXPECT_NEAR(grad[e], (loss(up) - loss(down)) / (2 * kStep), 1e-8) << e;
  }
}

}  // namespace
}  // namespace expertd::reference
