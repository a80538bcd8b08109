// One warp a row. The weights are computed again from the logits, before renormalisation; their gradient goes through
// the divisor, then through whatever couples the logits: a softmax over all of them, one over the chosen, or nothing.
#include <cuda_runtime.h>

#include "kernels/cuda/router_grad.h"
#include "kernels/cuda/topk_routing.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 32 * kRoutingWarpsPerBlock;

__device__ RowStats SoftmaxStats(const float* logits, int e) {
  RowStats stats = {.top = -kInfinity, .sum = 0};
  for (int i = threadIdx.x % 32; i < e; i += 32) stats.top = fmaxf(stats.top, logits[i]);
  for (int step = 16; step > 0; step /= 2) {
    stats.top = fmaxf(stats.top, __shfl_xor_sync(kAllLanes, stats.top, step));
  }
  for (int i = threadIdx.x % 32; i < e; i += 32) stats.sum += __expf(logits[i] - stats.top);
  stats.sum = WarpSum(stats.sum);
  return stats;
}

__global__ void __launch_bounds__(kThreads) RouterGradKernel(const __grid_constant__ RouterGradLaunch launch) {
  const TopkRoutingLaunch& routing = launch.routing;
  const PlainRule& rule = routing.rule;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRoutingWarpsPerBlock + threadIdx.x / 32;
  if (row >= routing.n) return;
  const float* const logits = routing.logits + row * routing.e;
  float* const grad_logits = launch.grad_logits + row * routing.e;
  const bool of_scores = rule.weigh == PlainRule::Weigh::kScore;
  const bool all_coupled = of_scores && rule.score == PlainRule::Score::kSoftmax;
  const bool chosen_coupled = rule.weigh == PlainRule::Weigh::kSoftmaxOfChosen;
  const bool sigmoid =
      rule.weigh == PlainRule::Weigh::kSigmoidOfChosen || (of_scores && rule.score == PlainRule::Score::kSigmoid);

  RowStats stats;
  if (all_coupled) stats = SoftmaxStats(logits, routing.e);
  Chosen chosen;
  float grad[Chosen::kPerLane] = {};
#pragma unroll
  for (int i = 0; i < Chosen::kPerLane; ++i) {
    if (RankOf(i) >= routing.k) continue;
    chosen.id[i] = routing.ids[row * routing.k + RankOf(i)];
    grad[i] = launch.grad_weights[row * routing.k + RankOf(i)];
  }
  Weigh(routing, stats, logits, chosen);

  // weight = scale * raw / divisor, where the divisor depends on raw unless it is a constant.
  const float(&raw)[Chosen::kPerLane] = chosen.weight;
  const float divisor = DivisorOf(rule, WarpSum(raw[0] + raw[1]));
  const bool constant = rule.renormalise == PlainRule::Renormalise::kNone ||
                        (rule.renormalise == PlainRule::Renormalise::kMaxSumEps && divisor == rule.renormalise_eps);
  const float through_divisor = constant ? 0.0f : WarpSum(grad[0] * raw[0] + grad[1] * raw[1]) / divisor;
#pragma unroll
  for (int i = 0; i < Chosen::kPerLane; ++i) {
    grad[i] = RankOf(i) < routing.k ? rule.scale * (grad[i] - through_divisor) / divisor : 0.0f;
  }
  const float coupled = WarpSum(grad[0] * raw[0] + grad[1] * raw[1]);

  for (int i = threadIdx.x % 32; i < routing.e; i += 32) {
    grad_logits[i] = all_coupled ? -coupled * ScoreOf(rule, stats, logits[i]) : 0.0f;
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < Chosen::kPerLane; ++i) {
    if (RankOf(i) >= routing.k) continue;
    const float slope = all_coupled || chosen_coupled ? raw[i] : sigmoid ? raw[i] * (1.0f - raw[i]) : 1.0f;
    const float through_others = all_coupled || chosen_coupled ? -coupled * raw[i] : 0.0f;
    grad_logits[chosen.id[i]] = fmaf(slope, grad[i], through_others);
  }
}

}  // namespace

int LaunchRouterGrad(const RouterGradLaunch& launch, void* stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv(launch.routing.n, kRoutingWarpsPerBlock));
  RouterGradKernel<<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace expertd::cuda
