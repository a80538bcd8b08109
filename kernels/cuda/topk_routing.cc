#include "kernels/cuda/topk_routing.h"

#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/routing_rule.h"
#include "kernels/cuda/topk_routing_config.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {
namespace {

template <typename Plain, typename Full>
constexpr bool Same(Plain plain, Full full) {
  return static_cast<int>(plain) == static_cast<int>(full);
}
static_assert(Same(PlainRule::Score::kSoftmax, Score::kSoftmax) && Same(PlainRule::Score::kSigmoid, Score::kSigmoid) &&
              Same(PlainRule::Score::kRaw, Score::kRaw));
static_assert(Same(PlainRule::GroupScore::kNone, GroupScore::kNone) &&
              Same(PlainRule::GroupScore::kMax, GroupScore::kMax) &&
              Same(PlainRule::GroupScore::kTop2Sum, GroupScore::kTop2Sum));
static_assert(Same(PlainRule::Weigh::kScore, Weigh::kScore) &&
              Same(PlainRule::Weigh::kSoftmaxOfChosen, Weigh::kSoftmaxOfChosen) &&
              Same(PlainRule::Weigh::kSigmoidOfChosen, Weigh::kSigmoidOfChosen) &&
              Same(PlainRule::Weigh::kSparseMixer, Weigh::kSparseMixer));
static_assert(Same(PlainRule::Renormalise::kNone, Renormalise::kNone) &&
              Same(PlainRule::Renormalise::kSumPlusEps, Renormalise::kSumPlusEps) &&
              Same(PlainRule::Renormalise::kMaxSumEps, Renormalise::kMaxSumEps));

}  // namespace

PlainRule PlainOf(const RoutingRule& rule) {
  return {.score = static_cast<PlainRule::Score>(rule.score),
          .group_score = static_cast<PlainRule::GroupScore>(rule.group_score),
          .weigh = static_cast<PlainRule::Weigh>(rule.weigh),
          .renormalise = static_cast<PlainRule::Renormalise>(rule.renormalise),
          .n_group = static_cast<int>(rule.n_group),
          .topk_group = static_cast<int>(rule.topk_group),
          .renormalise_eps = rule.renormalise_eps,
          .scale = rule.scale,
          .jitter_eps = rule.jitter_eps};
}

absl::Status FusedTopkRouting(const FusedTopkRoutingArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  const std::int64_t n_group = args.rule.group_score == GroupScore::kNone ? 1 : args.rule.n_group;
  const std::int64_t group = args.rule.group_score == GroupScore::kNone ? 0 : args.e / n_group;
  const bool softmax = args.rule.score == Score::kSoftmax && !args.rule.correction_bias &&
                       args.rule.group_score == GroupScore::kNone && args.rule.weigh == Weigh::kScore;
  const bool many = args.n >= kManyRoutingRows && args.rule.weigh != Weigh::kSparseMixer;
  const TopkRoutingLaunch launch = {.n = args.n,
                                    .e = static_cast<int>(args.e),
                                    .k = static_cast<int>(args.k),
                                    .values_per_lane = RoutingValuesPerLane(args.e, n_group),
                                    .softmax = softmax ? RoutingLanesOfSoftmax(args.n, args.e, args.k) : RoutingLanes{},
                                    .many = many ? RoutingLanesOfManyRows(args.e, args.k, group) : RoutingLanes{},
                                    .vectorised = args.e % 4 == 0 && Aligned16({args.logits, args.correction_bias}),
                                    .rule = PlainOf(args.rule),
                                    .logits = args.logits,
                                    .correction_bias = args.rule.correction_bias ? args.correction_bias : nullptr,
                                    .weights = args.weights,
                                    .ids = args.ids};
  return FromCuda(LaunchTopkRouting(launch, stream.handle), "fused_topk_routing");
}

}  // namespace expertd::cuda
