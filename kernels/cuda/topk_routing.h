// Device side of fused_topk_routing, for plain callers.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"
#include "kernels/cuda/topk_routing_config.h"

namespace expertd::cuda {

// expertd::RoutingRule as far as the kernels need it; enumerators value for value (checked in topk_routing.cc).
struct PlainRule {
  enum class Score : std::uint8_t { kSoftmax, kSigmoid, kRaw };
  enum class GroupScore : std::uint8_t { kNone, kMax, kTop2Sum };
  enum class Weigh : std::uint8_t { kScore, kSoftmaxOfChosen, kSigmoidOfChosen, kSparseMixer };
  enum class Renormalise : std::uint8_t { kNone, kSumPlusEps, kMaxSumEps };

  Score score = Score::kSoftmax;
  GroupScore group_score = GroupScore::kNone;
  Weigh weigh = Weigh::kScore;
  Renormalise renormalise = Renormalise::kNone;
  int n_group = 1, topk_group = 1;
  float renormalise_eps = 0, scale = 1, jitter_eps = 0;
};

struct TopkRoutingLaunch {
  std::int64_t n = 0;
  int e = 0, k = 0;
  int values_per_lane = 0;  // RoutingValuesPerLane
  RoutingLanes softmax;     // lanes > 0: the kernel of softmax without bias or groups
  RoutingLanes many;        // else, lanes > 0: the kernel of many rows
  bool vectorised = false;  // e a multiple of 4 and logits and bias 16-byte aligned
  PlainRule rule;
  const float* logits = nullptr;
  const float* correction_bias = nullptr;  // null: the rule has none
  float* weights = nullptr;
  std::int32_t* ids = nullptr;
};

// Enqueues one kernel on `stream` (a cudaStream_t); the answer is a cudaError_t.
int LaunchTopkRouting(const TopkRoutingLaunch& launch, void* stream);
// The parts of it for plain softmax, for rows that share a warp, and for rows that one warp does not hold.
int LaunchTopkRoutingSoftmax(const TopkRoutingLaunch& launch, void* stream);
int LaunchTopkRoutingMany(const TopkRoutingLaunch& launch, void* stream);
int LaunchTopkRoutingBlock(const TopkRoutingLaunch& launch, void* stream);

}  // namespace expertd::cuda
