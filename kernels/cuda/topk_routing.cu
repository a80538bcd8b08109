// One warp a row, all logits in registers: lane l holds the V neighbouring experts from l * V on. Each lane sorts its
// own (stable, by choice key); then the best of the row is the best of 32 heads, which two warp-wide instructions find
// (reduce_max, ballot; the lowest lane is the lowest expert), and only the winner's list moves up. That costs about 15
// instructions for each of the K chosen, whatever E is.
#include <cuda_runtime.h>

#include "kernels/cuda/topk_routing.cuh"
#include "kernels/cuda/topk_routing_config.h"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 32 * kRoutingWarpsPerBlock;

__device__ int Lane() { return threadIdx.x % 32; }
__device__ float WarpMax(float value) { return ValueOf(__reduce_max_sync(kAllLanes, KeyOf(value))); }

// The row's candidates: keys in falling order within each lane, and their experts.
template <int V>
struct Candidates {
  std::uint32_t key[V];
  int expert[V];

  // Odd-even transposition: neighbours change places only when the later is strictly better, so ties keep their order.
  __device__ void Sort() {
#pragma unroll
    for (int round = 0; round < V; ++round) {
#pragma unroll
      for (int i = round % 2; i + 1 < V; i += 2) {
        const bool swap = key[i + 1] > key[i];
        const std::uint32_t low_key = swap ? key[i] : key[i + 1];
        const int low_expert = swap ? expert[i] : expert[i + 1];
        key[i] = swap ? key[i + 1] : key[i], expert[i] = swap ? expert[i + 1] : expert[i];
        key[i + 1] = low_key, expert[i + 1] = low_expert;
      }
    }
  }
  // Takes the best of the warp's heads.
  __device__ int Pop() {
    const std::uint32_t best = __reduce_max_sync(kAllLanes, key[0]);
    const int winner = __ffs(__ballot_sync(kAllLanes, key[0] == best)) - 1;
    const int result = __shfl_sync(kAllLanes, expert[0], winner);
    const bool moves = Lane() == winner;  // selects, not a branch: every warp has a winner
#pragma unroll
    for (int i = 0; i + 1 < V; ++i) key[i] = moves ? key[i + 1] : key[i], expert[i] = moves ? expert[i + 1] : expert[i];
    key[V - 1] = moves ? 0 : key[V - 1];
    return result;
  }
};

// Bit g: group g is among the best. `choice` [e] stands in shared memory. Lane g looks at group g, starting at its g-th
// expert, so that lanes meet different banks.
__device__ unsigned BestGroups(const TopkRoutingLaunch& launch, const float* choice) {
  const PlainRule& rule = launch.rule;
  const int size = launch.e / rule.n_group;
  std::uint32_t key = 0;
  if (Lane() < rule.n_group) {
    float first = -kInfinity, second = -kInfinity;
    for (int i = 0, at = Lane() % size; i < size; ++i, at = at + 1 == size ? 0 : at + 1) {
      const float value = choice[Lane() * size + at];
      second = fmaxf(second, fminf(first, value));
      first = fmaxf(first, value);
    }
    key = KeyOf(rule.group_score == PlainRule::GroupScore::kTop2Sum ? first + second : first);
  }
  unsigned chosen = 0;
  for (int i = 0; i < rule.topk_group; ++i) {
    const std::uint32_t best = __reduce_max_sync(kAllLanes, key);
    const int winner = __ffs(__ballot_sync(kAllLanes, key == best)) - 1;
    chosen |= 1u << winner;
    if (Lane() == winner) key = 0;
  }
  return chosen;
}

template <int V>
__device__ void MaskGroups(const TopkRoutingLaunch& launch, float* choice, Candidates<V>& candidates) {
#pragma unroll
  for (int i = 0; i < V; ++i) choice[Lane() * V + i] = ValueOf(candidates.key[i]);
  __syncwarp();
  const unsigned groups = BestGroups(launch, choice);
  const std::uint32_t masked = KeyOf(MaskedChoice(launch));
  const unsigned size = launch.e / launch.rule.n_group;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const unsigned expert = candidates.expert[i];
    if (expert < launch.e && (groups >> expert / size & 1) == 0) candidates.key[i] = masked;
  }
}

// phimoe: the largest logit twice, each weighed by a softmax over the logits near it.
template <int V>
__device__ void SparseMixer(const PlainRule& rule, const float (&logit)[V], Candidates<V>& candidates, Chosen& chosen) {
  int first = -1;
  for (int round = 0; round < 2; ++round) {
    float top = -kInfinity;
#pragma unroll
    for (int i = 0; i < V; ++i) top = fmaxf(top, Lane() * V + i == first ? -kInfinity : logit[i]);
    top = WarpMax(top);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      // Experts past the last are minus infinity and add nothing.
      if (Lane() * V + i != first && IsNear(rule, top, logit[i])) sum += __expf(logit[i] - top);
    }
    sum = WarpSum(sum);
    first = candidates.Pop();
    chosen.Set(round, first);
    if (Lane() == round) chosen.weight[0] = 1.0f / sum;
  }
}

template <int V>
__global__ void __launch_bounds__(kThreads) WarpKernel(const __grid_constant__ TopkRoutingLaunch launch) {
  __shared__ float choices[kRoutingWarpsPerBlock][32 * V];
  const int warp = threadIdx.x / 32;
  const std::int64_t row = std::int64_t{blockIdx.x} * kRoutingWarpsPerBlock + warp;
  if (row >= launch.n) return;
  const PlainRule& rule = launch.rule;
  const float* const logits = launch.logits + row * launch.e;

  float logit[V];
  LoadValues(logits, Lane() * V, launch.e, launch.vectorised, logit);
  float bias[V] = {};
  if (launch.correction_bias != nullptr)
    LoadValues(launch.correction_bias, Lane() * V, launch.e, launch.vectorised, bias);
  bool nan = false;
  RowStats stats = {.top = -kInfinity};
#pragma unroll
  for (int i = 0; i < V; ++i) nan = nan || isnan(logit[i]), stats.top = fmaxf(stats.top, logit[i]);
  nan = __any_sync(kAllLanes, nan);
  stats.top = WarpMax(stats.top);
  if (HasNoScores(rule, nan, stats.top)) return WriteNanRow(launch, row);
  if (rule.score == PlainRule::Score::kSoftmax) {
    stats.sum = 0;
#pragma unroll
    for (int i = 0; i < V; ++i) stats.sum += __expf(logit[i] - stats.top);
    stats.sum = WarpSum(stats.sum);
  }

  Candidates<V> candidates;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    candidates.expert[i] = Lane() * V + i;
    const bool exists = candidates.expert[i] < launch.e;
    candidates.key[i] = exists ? KeyOf(ChoiceOf(launch, stats, logit[i], bias[i])) : 0;
  }
  if (rule.group_score != PlainRule::GroupScore::kNone) MaskGroups(launch, choices[warp], candidates);
  candidates.Sort();

  Chosen chosen;
  if (rule.weigh == PlainRule::Weigh::kSparseMixer) {
    SparseMixer(rule, logit, candidates, chosen);
  } else {
    for (int j = 0; j < launch.k; ++j) chosen.Set(j, candidates.Pop());
    Weigh(launch, stats, logits, chosen);
  }
  WriteRow(launch, row, chosen);
}

template <int V>
int Launch(const TopkRoutingLaunch& launch, void* stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv(launch.n, kRoutingWarpsPerBlock));
  WarpKernel<V><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace

int LaunchTopkRouting(const TopkRoutingLaunch& launch, void* stream) {
  if (launch.softmax.lanes > 0) return LaunchTopkRoutingSoftmax(launch, stream);
  if (launch.many.lanes > 0) return LaunchTopkRoutingMany(launch, stream);
  switch (launch.values_per_lane) {
    case 1:
      return Launch<1>(launch, stream);
    case 2:
      return Launch<2>(launch, stream);
    case 4:
      return Launch<4>(launch, stream);
    case 8:
      return Launch<8>(launch, stream);
    case 16:
      return Launch<16>(launch, stream);
    default:
      return LaunchTopkRoutingBlock(launch, stream);
  }
}

}  // namespace expertd::cuda
