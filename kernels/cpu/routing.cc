#include "kernels/cpu/routing.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>

#include "absl/types/span.h"

namespace expertd::cpu {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

void ScoreAll(Score kind, const float* logits, absl::Span<double> score) {
  std::copy(logits, logits + score.size(), score.begin());
  if (kind == Score::kRaw) return;
  if (kind == Score::kSigmoid) {
    for (double& s : score) s = Sigmoid(s);
    return;
  }
  const double max = *std::max_element(score.begin(), score.end());
  double sum = 0.0;
  for (double& s : score) sum += s = std::exp(s - max);
  for (double& s : score) s /= sum;
}

// The `count` best of the values, best first, the earlier of equals first. No value is NaN.
void TopK(absl::Span<const double> values, std::int64_t count, std::int32_t* ids) {
  std::int64_t found = 0;
  for (std::size_t i = 0; i < values.size(); ++i) {
    if (found == count && values[i] <= values[ids[count - 1]]) continue;
    std::int64_t at = found < count ? found++ : count - 1;
    for (; at > 0 && values[i] > values[ids[at - 1]]; --at) ids[at] = ids[at - 1];
    ids[at] = static_cast<std::int32_t>(i);
  }
}

double GroupScoreOf(GroupScore kind, absl::Span<const double> group) {
  double first = -kInfinity, second = -kInfinity;
  for (double value : group) {
    if (value > first) {
      second = first;
      first = value;
    } else if (value > second) {
      second = value;
    }
  }
  return kind == GroupScore::kMax ? first : first + second;
}

// Masks the choice scores of experts outside the best groups.
void LimitGroups(const RoutingRule& rule, absl::Span<double> choice) {
  if (rule.group_score == GroupScore::kNone) return;
  const std::size_t size = choice.size() / static_cast<std::size_t>(rule.n_group);
  std::vector<double> scores(rule.n_group);
  for (std::size_t g = 0; g < scores.size(); ++g) {
    scores[g] = GroupScoreOf(rule.group_score, choice.subspan(g * size, size));
  }
  std::vector<std::int32_t> best(rule.topk_group);
  TopK(scores, rule.topk_group, best.data());
  const double masked = rule.group_score == GroupScore::kMax ? 0.0 : -kInfinity;
  for (std::size_t g = 0; g < scores.size(); ++g) {
    if (std::find(best.begin(), best.end(), static_cast<std::int32_t>(g)) != best.end()) continue;
    for (double& value : choice.subspan(g * size, size)) value = masked;
  }
}

// phimoe: twice the arg-max, weighed by a softmax over the logits close to it; the second time without the first.
void SparseMixer(float jitter_eps, absl::Span<double> logits, std::int32_t* ids, double* weights) {
  for (int round = 0; round < 2; ++round) {
    TopK(logits, 1, &ids[round]);
    const double max = logits[ids[round]];
    double sum = 0.0;
    for (double s : logits) {
      const bool far = (max - s) / std::max(std::abs(s), max) > 2.0 * jitter_eps;  // 0 / 0 is not far
      if (!far && s != -kInfinity) sum += std::exp(s - max);
    }
    weights[round] = 1.0 / sum;
    logits[ids[round]] = -kInfinity;
  }
}

void Weighted(Weigh kind, const float* logits, absl::Span<const double> score, absl::Span<const std::int32_t> ids,
              absl::Span<double> weights) {
  const double max = logits[*std::max_element(ids.begin(), ids.end(),
                                              [&](std::int32_t a, std::int32_t b) { return logits[a] < logits[b]; })];
  double sum = 0.0;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const double logit = logits[ids[i]];
    weights[i] = kind == Weigh::kScore ? score[ids[i]]
                                       : (kind == Weigh::kSigmoidOfChosen ? Sigmoid(logit) : std::exp(logit - max));
    sum += weights[i];
  }
  if (kind != Weigh::kSoftmaxOfChosen) return;
  for (double& weight : weights) weight /= sum;
}

void Renormalise(const RoutingRule& rule, absl::Span<double> weights) {
  double sum = 0.0;
  for (double weight : weights) sum += weight;
  double divisor = 1.0;
  if (rule.renormalise == Renormalise::kSumPlusEps) divisor = sum + rule.renormalise_eps;
  if (rule.renormalise == Renormalise::kMaxSumEps) divisor = std::max<double>(sum, rule.renormalise_eps);
  for (double& weight : weights) weight = weight / divisor * rule.scale;
}

}  // namespace

void RouteRow(const LayerSpec& spec, const float* logits, const float* correction_bias, RoutingScratch& scratch,
              std::int32_t* ids, float* weights) {
  const RoutingRule& rule = spec.routing;
  const auto experts = static_cast<std::size_t>(spec.num_experts);
  const auto k = static_cast<std::size_t>(spec.experts_per_token);
  scratch.score.resize(experts);
  ScoreAll(rule.score, logits, absl::MakeSpan(scratch.score));
  scratch.choice = scratch.score;
  for (std::size_t e = 0; correction_bias != nullptr && e < experts; ++e) scratch.choice[e] += correction_bias[e];

  if (std::any_of(scratch.choice.begin(), scratch.choice.end(), [](double value) { return std::isnan(value); })) {
    for (std::size_t i = 0; i < k; ++i) ids[i] = static_cast<std::int32_t>(i);
    std::fill(weights, weights + k, std::numeric_limits<float>::quiet_NaN());
    return;
  }
  double exact[kMaxExpertsPerToken];
  const absl::Span<double> chosen(exact, k);
  if (rule.weigh == Weigh::kSparseMixer) {
    SparseMixer(rule.jitter_eps, absl::MakeSpan(scratch.choice), ids, exact);
  } else {
    LimitGroups(rule, absl::MakeSpan(scratch.choice));
    TopK(scratch.choice, spec.experts_per_token, ids);
    Weighted(rule.weigh, logits, scratch.score, absl::MakeSpan(ids, k), chosen);
  }
  Renormalise(rule, chosen);
  std::copy(chosen.begin(), chosen.end(), weights);
}

}  // namespace expertd::cpu
