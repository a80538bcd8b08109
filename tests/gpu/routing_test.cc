#include <cmath>

#include "kernels/cuda/topk_routing_config.h"
#include "kernels/reference/compare.h"
#include "kernels/reference/layer.h"
#include "kernels/reference/loops.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

using RoutingGpuTest = GpuTest;

struct NamedRule {
  const char* name;
  RoutingRule rule;
};
// One of each way to score, choose and weigh that released models have.
const NamedRule kRules[] = {
    {"mixtral", {.renormalise = Renormalise::kSumPlusEps}},
    {"jamba", {}},
    {"ernie", {.correction_bias = true, .renormalise = Renormalise::kMaxSumEps, .renormalise_eps = 1e-12f}},
    {"deepseek_v2", {.group_score = GroupScore::kMax, .n_group = 4, .topk_group = 2, .scale = 16.0f}},
    {"deepseek_v3",
     {.score = Score::kSigmoid,
      .correction_bias = true,
      .group_score = GroupScore::kTop2Sum,
      .n_group = 4,
      .topk_group = 2,
      .renormalise = Renormalise::kSumPlusEps,
      .renormalise_eps = 1e-20f,
      .scale = 2.5f}},
    {"minimax_m2", {.score = Score::kSigmoid, .correction_bias = true, .renormalise = Renormalise::kSumPlusEps}},
    {"gpt_oss", {.score = Score::kRaw, .weigh = Weigh::kSoftmaxOfChosen}},
    {"llama4", {.score = Score::kRaw, .weigh = Weigh::kSigmoidOfChosen}},
    {"phimoe", {.score = Score::kRaw, .weigh = Weigh::kSparseMixer, .jitter_eps = 0.1f}},
};

struct Answer {
  std::vector<std::int32_t> ids;
  std::vector<float> weights;
};

Answer Route(FusedTopkRoutingArgs args, const std::vector<float>& logits, const std::vector<float>& bias) {
  const DeviceArray<float> device_logits(logits), device_bias(bias), weights(args.n * args.k);
  const DeviceArray<std::int32_t> ids(args.n * args.k);
  args.logits = device_logits.data(), args.correction_bias = device_bias.data();
  args.weights = weights.data(), args.ids = ids.data();
  const absl::Status status = cuda::FusedTopkRouting(args, {});
  EXPECT_TRUE(status.ok()) << status;
  return {ids.Host(), weights.Host()};
}

std::vector<float> NormalFloats(std::int64_t count, std::uint64_t seed, float scale) {
  Random random(seed);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = random.Normal() * scale;
  return values;
}

void ExpectReference(const FusedTopkRoutingArgs& args, const std::vector<float>& logits,
                     const std::vector<float>& bias) {
  const Answer got = Route(args, logits, bias);
  std::int64_t ties = 0;
  for (std::int64_t n = 0; n < args.n; ++n) {
    const std::vector<double> row(logits.begin() + n * args.e, logits.begin() + (n + 1) * args.e);
    std::vector<double> row_bias;
    if (args.rule.correction_bias) row_bias.assign(bias.begin(), bias.end());
    const reference::Routing want = reference::Route(args.rule, args.k, row, row_bias);
    const std::vector<std::int32_t> ids(got.ids.begin() + n * args.k, got.ids.begin() + (n + 1) * args.k);
    const std::vector<double> weights(got.weights.begin() + n * args.k, got.weights.begin() + (n + 1) * args.k);
    if (want.margin < reference::kRoutingTie) {
      ++ties;
    } else {
      EXPECT_TRUE(reference::SameRouting(ids, weights, want.ids, want.weights, 1e-5))
          << "row " << n << ": " << ::testing::PrintToString(ids) << ::testing::PrintToString(weights) << " and not "
          << ::testing::PrintToString(want.ids) << ::testing::PrintToString(want.weights);
    }
  }
  EXPECT_LE(ties, 1 + args.n / 100);
}

std::int64_t GroupsOf(const RoutingRule& rule) { return rule.group_score == GroupScore::kNone ? 1 : rule.n_group; }

TEST_F(RoutingGpuTest, EveryRuleIsTheReferenceAtEverySize) {
  for (const NamedRule& named : kRules) {
    for (const std::int64_t e :
         Cases<std::int64_t>({1, 2, 8, 60, 64, 100, 128, 160, 256, 384, 512, 513, 1000}, {8, 60, 100, 160, 384, 516})) {
      for (const std::int64_t k : Cases<std::int64_t>({1, 2, 6, 8, 16}, {2, 6})) {
        const bool mixer = named.rule.weigh == Weigh::kSparseMixer;
        const std::int64_t groups = GroupsOf(named.rule);
        if (k > e || (mixer && k != 2) || e % groups != 0 || e / groups < 2 * (groups > 1)) continue;
        if (groups > 1 && k > named.rule.topk_group * (e / groups)) continue;
        for (const std::int64_t n : Cases<std::int64_t>({1, 33, 129}, {3})) {
          SCOPED_TRACE(std::string(named.name) + " E " + std::to_string(e) + " K " + std::to_string(k) + " N " +
                       std::to_string(n));
          ExpectReference({.n = n, .e = e, .k = k, .rule = named.rule}, NormalFloats(n * e, 7 * e + k, 1.0f),
                          NormalFloats(e, 5, 0.1f));
        }
      }
    }
  }
}

TEST_F(RoutingGpuTest, ManyRowsManyChosenManyGroups) {
  for (const std::int64_t n : RowCounts()) {
    ExpectReference({.n = n, .e = 128, .k = 8, .rule = kRules[0].rule}, NormalFloats(n * 128, 3, 1.0f), {});
  }
  ExpectReference({.n = 9, .e = 128, .k = 64, .rule = kRules[0].rule}, NormalFloats(9 * 128, 4, 1.0f), {});
  ExpectReference({.n = 9, .e = 4096, .k = 64, .rule = kRules[0].rule}, NormalFloats(9 * 4096, 5, 1.0f), {});
  RoutingRule rule = kRules[4].rule;
  rule.n_group = 64, rule.topk_group = 5;
  ExpectReference({.n = 9, .e = 256, .k = 8, .rule = rule}, NormalFloats(9 * 256, 6, 1.0f), NormalFloats(256, 7, 0.1f));
}

TEST_F(RoutingGpuTest, TiesGoToTheLowerExpertAlsoBetweenZeros) {
  for (const std::int64_t e : {7, 64, 256, 600}) {
    std::vector<float> logits(e, 0.0f);
    for (std::int64_t i = 0; i < e; i += 2) logits[i] = -0.0f;
    for (const NamedRule& named : {kRules[0], kRules[5], kRules[6]}) {
      const Answer got = Route({.n = 1, .e = e, .k = 4, .rule = named.rule}, logits, std::vector<float>(e, 0.0f));
      EXPECT_THAT(got.ids, ::testing::ElementsAre(0, 1, 2, 3)) << named.name << " E " << e;
    }
  }
}

TEST_F(RoutingGpuTest, NanRowsGetTheFirstExpertsAndLeaveOthersAlone) {
  for (const std::int64_t e : {5, 64, 256, 600}) {
    std::vector<float> logits = NormalFloats(3 * e, 11, 1.0f);
    const std::vector<float> bias(e, 0.0f);
    for (const NamedRule& named : {kRules[0], kRules[5], kRules[6]}) {
      const FusedTopkRoutingArgs args = {.n = 3, .e = e, .k = 4, .rule = named.rule};
      const Answer clean = Route(args, logits, bias);
      std::vector<float> poisoned = logits;
      poisoned[e + e - 1] = std::nanf("");
      const Answer got = Route(args, poisoned, bias);
      for (int j = 0; j < 12; ++j) {
        const bool nan_row = j / 4 == 1;
        EXPECT_EQ(got.ids[j], nan_row ? j % 4 : clean.ids[j]);
        EXPECT_TRUE(nan_row ? std::isnan(got.weights[j]) : got.weights[j] == clean.weights[j]);
      }
    }
  }
}

// Many rows share warps, few do not: the answers must not show it.
TEST_F(RoutingGpuTest, ManyRowsGiveTheBitsOfFew) {
  constexpr std::int64_t kMany = cuda::kManyRoutingRows, kFew = 500;
  for (const std::int64_t e : Cases<std::int64_t>({8, 32, 60, 64, 100, 128, 160, 256, 384, 512}, {256})) {
    std::vector<float> logits = NormalFloats(kMany * e, 5 * e, 1.0f);
    for (std::int64_t i = 0; i < 40 * e; ++i) logits[i] = std::round(logits[i]);  // ties
    logits[50 * e + e / 2] = std::nanf("");
    const std::vector<float> bias = NormalFloats(e, 15, 0.1f);
    for (const NamedRule& named : kRules) {
      if (SmallTests() && &named != &kRules[0] && &named != &kRules[4]) continue;  // 8192 rows each
      for (const std::int64_t k : Cases<std::int64_t>({1, 6, 8}, {6})) {
        const std::int64_t groups = GroupsOf(named.rule);
        if (k > e || e % groups != 0 || e / groups < 2 * (groups > 1)) continue;
        if (named.rule.weigh == Weigh::kSparseMixer || (groups > 1 && k > named.rule.topk_group * (e / groups)))
          continue;
        SCOPED_TRACE(std::string(named.name) + " E " + std::to_string(e) + " K " + std::to_string(k));
        const FusedTopkRoutingArgs args = {.n = kMany, .e = e, .k = k, .rule = named.rule};
        const Answer all = Route(args, logits, bias);
        for (const std::int64_t first : {std::int64_t{0}, kMany - kFew}) {
          FusedTopkRoutingArgs part = args;
          part.n = kFew;
          const Answer few = Route(part, {logits.begin() + first * e, logits.begin() + (first + kFew) * e}, bias);
          EXPECT_TRUE(std::equal(few.ids.begin(), few.ids.end(), all.ids.begin() + first * k));
          EXPECT_EQ(std::memcmp(few.weights.data(), all.weights.data() + first * k, few.weights.size() * 4), 0);
        }
      }
    }
  }
}

TEST_F(RoutingGpuTest, ARowDoesNotDependOnItsNeighbours) {
  const std::vector<float> logits = NormalFloats(100 * 256, 13, 1.0f), bias = NormalFloats(256, 14, 0.1f);
  const FusedTopkRoutingArgs args = {.n = 100, .e = 256, .k = 8, .rule = kRules[4].rule};
  const Answer all = Route(args, logits, bias);
  for (const std::int64_t n : {0, 3, 99}) {
    FusedTopkRoutingArgs one = args;
    one.n = 1;
    const Answer alone = Route(one, {logits.begin() + n * 256, logits.begin() + (n + 1) * 256}, bias);
    EXPECT_EQ(alone.ids, std::vector<std::int32_t>(all.ids.begin() + n * 8, all.ids.begin() + (n + 1) * 8));
    EXPECT_EQ(alone.weights, std::vector<float>(all.weights.begin() + n * 8, all.weights.begin() + (n + 1) * 8));
  }
}

}  // namespace
}  // namespace expertd::testing
