// What the two routing kernels share: keys that order like floats, scores, and the weights of the chosen.
#pragma once

#include <cstdint>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/topk_routing.h"

namespace expertd::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;
inline constexpr float kInfinity = __builtin_huge_valf();

// Unsigned integers in the order of the floats, both zeros equal. Key 0 is below every float: "not a candidate".
__device__ inline std::uint32_t KeyOf(float value) {
  const std::uint32_t bits = __float_as_uint(value + 0.0f);  // -0 becomes 0
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ inline float ValueOf(std::uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// Values [first, first + V) of a row of e; past the last, minus infinity.
template <int V>
__device__ inline void LoadValues(const float* row, int first, int e, bool vectorised, float (&value)[V]) {
  constexpr int kStep = V < 4 ? V : 4;
  if (vectorised) {  // e is a multiple of 4: a step is inside or outside; decided once, so that loads go out together
#pragma unroll
    for (int i = 0; i < V; i += kStep) {
      float part[kStep];
#pragma unroll
      for (int j = 0; j < kStep; ++j) part[j] = -kInfinity;
      if (first + i < e) Load(row + first + i, part);
#pragma unroll
      for (int j = 0; j < kStep; ++j) value[i + j] = part[j];
    }
  } else {
#pragma unroll
    for (int i = 0; i < V; ++i) value[i] = first + i < e ? row[first + i] : -kInfinity;
  }
}

// The largest logit of a row, and the sum of the exponentials below it (softmax only).
struct RowStats {
  float top = 0, sum = 1;
};

// The fast exponential and division are within a few units in the last place where scores are large enough to matter.
__device__ inline float FastSigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

__device__ inline float ScoreOf(const PlainRule& rule, const RowStats& stats, float logit) {
  switch (rule.score) {
    case PlainRule::Score::kSoftmax:
      return __fdividef(__expf(logit - stats.top), stats.sum);
    case PlainRule::Score::kSigmoid:
      return FastSigmoid(logit);
    case PlainRule::Score::kRaw:
      break;
  }
  return logit;
}

// Softmax without a bias orders experts as their logits do, and a group's best too: then nothing has to be scored
// before the choice, and logits that softmax would round together stay apart.
__device__ inline bool ChoosesByLogit(const TopkRoutingLaunch& launch) {
  return launch.rule.score == PlainRule::Score::kSoftmax && launch.correction_bias == nullptr &&
         launch.rule.group_score != PlainRule::GroupScore::kTop2Sum;
}
// Choice value of experts outside the chosen groups: a score of 0 or minus infinity.
__device__ inline float MaskedChoice(const TopkRoutingLaunch& launch) {
  const bool zero = launch.rule.group_score == PlainRule::GroupScore::kMax && !ChoosesByLogit(launch);
  return zero ? 0.0f : -kInfinity;
}
__device__ inline float ChoiceOf(const TopkRoutingLaunch& launch, const RowStats& stats, float logit, float bias) {
  if (ChoosesByLogit(launch)) return logit;
  return ScoreOf(launch.rule, stats, logit) + bias;
}

// A row whose scores are not numbers: any NaN, or a softmax around an infinity.
__device__ inline bool HasNoScores(const PlainRule& rule, bool any_nan, float top) {
  return any_nan || (rule.score == PlainRule::Score::kSoftmax && isinf(top));
}
// phimoe: whether a logit stays in the softmax around `top`. NaN (0 / 0) stays.
__device__ inline bool IsNear(const PlainRule& rule, float top, float logit) {
  return !((top - logit) / fmaxf(fabsf(logit), top) > 2.0f * rule.jitter_eps);
}

// The chosen of one row, spread over a warp: lane l holds the l-th and the (l + 32)-th.
struct Chosen {
  static constexpr int kPerLane = 2;
  int id[kPerLane] = {0, 0};
  float weight[kPerLane] = {0, 0};

  __device__ void Set(int j, int expert) {
    if (threadIdx.x % 32 == j % 32) (j < 32 ? id[0] : id[1]) = expert;
  }
};
__device__ inline int RankOf(int i) { return threadIdx.x % 32 + 32 * i; }

// Weight of a chosen logit before renormalisation; `top` and `sum` are of the chosen (kSoftmaxOfChosen only).
__device__ inline float WeightOf(const PlainRule& rule, const RowStats& stats, float logit, float top, float sum) {
  switch (rule.weigh) {
    case PlainRule::Weigh::kSoftmaxOfChosen:
      return __fdividef(__expf(logit - top), sum);
    case PlainRule::Weigh::kSigmoidOfChosen:
      return FastSigmoid(logit);
    default:
      return ScoreOf(rule, stats, logit);
  }
}
// What the chosen weights, which add up to `sum`, are divided by.
__device__ inline float DivisorOf(const PlainRule& rule, float sum) {
  switch (rule.renormalise) {
    case PlainRule::Renormalise::kNone:
      return 1.0f;
    case PlainRule::Renormalise::kSumPlusEps:
      return sum + rule.renormalise_eps;
    default:
      return fmaxf(sum, rule.renormalise_eps);
  }
}

// Weights before renormalisation, by a whole warp.
__device__ inline void Weigh(const TopkRoutingLaunch& launch, const RowStats& stats, const float* logits,
                             Chosen& chosen) {
  const PlainRule& rule = launch.rule;
  float logit[Chosen::kPerLane], top = -kInfinity;
  for (int i = 0; i < Chosen::kPerLane; ++i) {
    logit[i] = RankOf(i) < launch.k ? logits[chosen.id[i]] : -kInfinity;
    top = fmaxf(top, logit[i]);
  }
  float sum = 0;
  if (rule.weigh == PlainRule::Weigh::kSoftmaxOfChosen) {
    top = ValueOf(__reduce_max_sync(kAllLanes, KeyOf(top)));
    for (int i = 0; i < Chosen::kPerLane; ++i) sum += RankOf(i) < launch.k ? __expf(logit[i] - top) : 0.0f;
    sum = WarpSum(sum);
  }
  for (int i = 0; i < Chosen::kPerLane; ++i) {
    if (RankOf(i) >= launch.k) continue;
    chosen.weight[i] = WeightOf(rule, stats, logit[i], top, sum);
  }
}

// Renormalises, scales and writes one row, by a whole warp.
__device__ inline void WriteRow(const TopkRoutingLaunch& launch, std::int64_t row, const Chosen& chosen) {
  const PlainRule& rule = launch.rule;
  const float divisor = DivisorOf(rule, WarpSum(chosen.weight[0] + chosen.weight[1]));
  for (int i = 0; i < Chosen::kPerLane; ++i) {
    if (RankOf(i) >= launch.k) continue;
    launch.ids[row * launch.k + RankOf(i)] = chosen.id[i];
    launch.weights[row * launch.k + RankOf(i)] = chosen.weight[i] / divisor * rule.scale;
  }
}

__device__ inline void WriteNanRow(const TopkRoutingLaunch& launch, std::int64_t row) {
  Chosen chosen;
  for (int i = 0; i < Chosen::kPerLane; ++i) chosen.id[i] = RankOf(i), chosen.weight[i] = __uint_as_float(0x7fc00000u);
  WriteRow(launch, row, chosen);
}

}  // namespace expertd::cuda
