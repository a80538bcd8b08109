// fused_topk_routing: score, choose, weigh (kernels/layer_spec.h), and its gradient.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "kernels/ops_check.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Candidates of a choice, experts or groups: what they are ranked by, and by how much that moves for a relative
// rounding of 1 in the logits and in the scores themselves.
struct Ranked {
  std::vector<double> value, sensitivity;
};

// The best `count`, best first, ties to the lower index.
std::vector<std::int32_t> Best(const std::vector<double>& value, std::int64_t count) {
  std::vector<std::int32_t> order(value.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return value[a] > value[b]; });
  order.resize(static_cast<std::size_t>(count));
  return order;
}

// How far the choice of `chosen` is from another one, relative to the rounding.
double Margin(const Ranked& candidates, const std::vector<std::int32_t>& chosen) {
  std::vector<bool> taken(candidates.value.size());
  for (const std::int32_t c : chosen) taken[c] = true;
  double margin = kInfinity;
  const std::int32_t last = chosen.back();
  for (std::size_t i = 0; i < taken.size(); ++i) {
    if (taken[i] || candidates.value[i] == -kInfinity) continue;
    const double difference = candidates.value[last] - candidates.value[i];
    const double rounding = candidates.sensitivity[last] + candidates.sensitivity[i];
    margin = std::min(margin, difference > 0 ? difference / rounding : 0.0);
  }
  return margin;
}

double LargestMagnitude(const std::vector<double>& values) {
  double largest = 0;
  for (const double v : values) largest = std::max(largest, std::fabs(v));
  return largest;
}

std::vector<double> Softmax(std::vector<double> x) {
  const double top = *std::max_element(x.begin(), x.end());
  double sum = 0;
  for (double& v : x) sum += v = std::exp(v - top);
  for (double& v : x) v /= sum;
  return x;
}

std::vector<double> ScoresOf(Score score, const std::vector<double>& logits) {
  if (score == Score::kSoftmax) return Softmax(logits);
  std::vector<double> scores = logits;
  if (score == Score::kSigmoid) std::transform(scores.begin(), scores.end(), scores.begin(), Sigmoid);
  return scores;
}

Ranked ChoiceScores(Score score, const std::vector<double>& logits, const std::vector<double>& scores,
                    const std::vector<double>& correction_bias) {
  const double logit_size = LargestMagnitude(logits);
  Ranked ranked{scores, {}};
  for (std::size_t e = 0; e < scores.size(); ++e) {
    const double s = scores[e];
    const double bias = correction_bias.empty() ? 0.0 : correction_bias[e];
    const double slope = score == Score::kSoftmax ? s : score == Score::kSigmoid ? s * (1.0 - s) : 1.0;
    ranked.value[e] = s + bias;
    ranked.sensitivity.push_back(slope * logit_size + std::fabs(s) + std::fabs(bias));
  }
  return ranked;
}

// Masks the experts outside the best groups. Returns the margin of the choice of groups.
double LimitToGroups(const RoutingRule& rule, Ranked& experts) {
  const std::int64_t size = static_cast<std::int64_t>(experts.value.size()) / rule.n_group;
  const std::int64_t counted = rule.group_score == GroupScore::kTop2Sum ? 2 : 1;
  Ranked groups;
  for (std::int64_t g = 0; g < rule.n_group; ++g) {
    const auto begin = experts.value.begin() + g * size;
    double value = 0, sensitivity = 0;
    for (const std::int32_t i : Best({begin, begin + size}, counted)) {
      value += begin[i];
      sensitivity += experts.sensitivity[g * size + i];
    }
    groups.value.push_back(value);
    groups.sensitivity.push_back(sensitivity);
  }
  const std::vector<std::int32_t> chosen = Best(groups.value, rule.topk_group);
  const double masked = rule.group_score == GroupScore::kMax ? 0.0 : -kInfinity;
  for (std::int64_t g = 0; g < rule.n_group; ++g) {
    if (std::find(chosen.begin(), chosen.end(), g) != chosen.end()) continue;
    std::fill_n(experts.value.begin() + g * size, size, masked);
  }
  return Margin(groups, chosen);
}

// phimoe: twice the largest logit, weighed by a softmax over the logits near it.
Routing SparseMixer(const RoutingRule& rule, const std::vector<double>& logits) {
  Routing routing{{}, {}, kInfinity};
  std::vector<double> left = logits;  // without what was chosen already
  const std::vector<double> sensitivity(logits.size(), LargestMagnitude(logits));
  for (int round = 0; round < 2; ++round) {
    const std::vector<std::int32_t> best = Best(left, 1);
    const double top = left[best[0]];
    std::vector<double> near = left;
    for (std::size_t e = 0; e < logits.size(); ++e) {
      const double ratio = (top - logits[e]) / std::max(std::fabs(logits[e]), top);
      if (ratio > 2.0 * rule.jitter_eps) near[e] = -kInfinity;
      // A logit on the border of the mask changes the weight abruptly.
      if (left[e] != -kInfinity) routing.margin = std::min(routing.margin, std::fabs(ratio - 2.0 * rule.jitter_eps));
    }
    routing.margin = std::min(routing.margin, Margin({left, sensitivity}, best));
    routing.ids.push_back(best[0]);
    routing.weights.push_back(Softmax(near)[best[0]]);
    left[best[0]] = -kInfinity;
  }
  return routing;
}

// The weights of the chosen before they are renormalised.
std::vector<double> RawWeights(Weigh weigh, const std::vector<double>& logits, const std::vector<double>& scores,
                               const std::vector<std::int32_t>& ids) {
  std::vector<double> weights;
  for (const std::int32_t id : ids) weights.push_back(weigh == Weigh::kScore ? scores[id] : logits[id]);
  if (weigh == Weigh::kSoftmaxOfChosen) return Softmax(weights);
  if (weigh == Weigh::kSigmoidOfChosen) std::transform(weights.begin(), weights.end(), weights.begin(), Sigmoid);
  return weights;
}

double Divisor(const RoutingRule& rule, const std::vector<double>& weights) {
  const double sum = std::accumulate(weights.begin(), weights.end(), 0.0);
  switch (rule.renormalise) {
    case Renormalise::kNone:
      return 1.0;
    case Renormalise::kSumPlusEps:
      return sum + rule.renormalise_eps;
    case Renormalise::kMaxSumEps:
      return std::max<double>(sum, rule.renormalise_eps);
  }
  return 1.0;
}

double Dot(const std::vector<double>& a, const std::vector<double>& b) {
  return std::inner_product(a.begin(), a.end(), b.begin(), 0.0);
}

bool AnyNan(const std::vector<double>& values) {
  return std::any_of(values.begin(), values.end(), [](double v) { return std::isnan(v); });
}

}  // namespace

Routing Route(const RoutingRule& rule, std::int64_t k, const std::vector<double>& logits,
              const std::vector<double>& correction_bias) {
  const std::vector<double> scores = ScoresOf(rule.score, logits);
  if (AnyNan(scores)) {
    Routing routing{std::vector<std::int32_t>(k), std::vector<double>(k, std::nan("")), kInfinity};
    std::iota(routing.ids.begin(), routing.ids.end(), 0);
    return routing;
  }
  Routing routing;
  if (rule.weigh == Weigh::kSparseMixer) {
    routing = SparseMixer(rule, logits);
  } else {
    Ranked experts = ChoiceScores(rule.score, logits, scores, correction_bias);
    double margin = kInfinity;
    if (rule.group_score != GroupScore::kNone) margin = LimitToGroups(rule, experts);
    routing.ids = Best(experts.value, k);
    routing.margin = std::min(margin, Margin(experts, routing.ids));
    routing.weights = RawWeights(rule.weigh, logits, scores, routing.ids);
  }
  const double divisor = Divisor(rule, routing.weights);
  for (double& w : routing.weights) w = w / divisor * rule.scale;
  return routing;
}

std::vector<double> RouteGrad(const RoutingRule& rule, const std::vector<double>& logits, const Routing& routing,
                              const std::vector<double>& grad_weights) {
  const std::vector<double> scores = ScoresOf(rule.score, logits);
  const std::vector<double> raw = RawWeights(rule.weigh, logits, scores, routing.ids);
  const double divisor = Divisor(rule, raw);
  // weights = scale * raw / divisor; the divisor depends on raw unless it is a constant.
  const bool constant = rule.renormalise == Renormalise::kNone ||
                        (rule.renormalise == Renormalise::kMaxSumEps && divisor == rule.renormalise_eps);
  const double through_divisor = constant ? 0.0 : Dot(grad_weights, raw) / divisor;
  std::vector<double> grad_raw;
  for (const double g : grad_weights) grad_raw.push_back(rule.scale * (g - through_divisor) / divisor);

  // raw from logits: softmaxes couple all that they run over, the others are element by element.
  const double coupled = Dot(grad_raw, raw);
  std::vector<double> grad(logits.size(), 0.0);
  if (rule.weigh == Weigh::kScore && rule.score == Score::kSoftmax) {
    for (std::size_t e = 0; e < grad.size(); ++e) grad[e] = -coupled * scores[e];
  }
  const bool softmax =
      rule.weigh == Weigh::kSoftmaxOfChosen || (rule.weigh == Weigh::kScore && rule.score == Score::kSoftmax);
  const bool sigmoid =
      rule.weigh == Weigh::kSigmoidOfChosen || (rule.weigh == Weigh::kScore && rule.score == Score::kSigmoid);
  for (std::size_t i = 0; i < raw.size(); ++i) {
    const double slope = softmax ? raw[i] : sigmoid ? raw[i] * (1.0 - raw[i]) : 1.0;
    grad[routing.ids[i]] += slope * grad_raw[i];
    if (rule.weigh == Weigh::kSoftmaxOfChosen) grad[routing.ids[i]] -= raw[i] * coupled;
  }
  return grad;
}

absl::Status FusedTopkRouting(const FusedTopkRoutingArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  std::vector<double> bias;
  if (args.rule.correction_bias) bias.assign(args.correction_bias, args.correction_bias + args.e);
  for (std::int64_t i = 0; i < args.n; ++i) {
    const std::vector<double> logits(args.logits + i * args.e, args.logits + (i + 1) * args.e);
    const Routing routing = Route(args.rule, args.k, logits, bias);
    std::copy(routing.ids.begin(), routing.ids.end(), args.ids + i * args.k);
    std::copy(routing.weights.begin(), routing.weights.end(), args.weights + i * args.k);
  }
  return absl::OkStatus();
}

}  // namespace expertd::reference
