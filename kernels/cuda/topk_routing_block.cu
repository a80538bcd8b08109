// fused_topk_routing for rows that do not fit in one warp's registers: more than 512 experts or 32 groups. One block a
// row, choice keys in shared memory, each of the K chosen found by a scan of all keys. No released model needs it; it
// keeps the catalogue's limits without a second design.
#include <cuda_runtime.h>

#include "kernels/cuda/topk_routing.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Combines one value of each thread over the block, in a fixed order; every thread gets the result.
template <typename T, typename Combine>
__device__ T BlockReduce(T value, const Combine& combine) {
  __shared__ T parts[kWarps];
  for (int step = 16; step > 0; step /= 2) value = combine(value, __shfl_xor_sync(kAllLanes, value, step));
  __syncthreads();  // an earlier call's parts have been read
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  value = parts[0];
  for (int warp = 1; warp < kWarps; ++warp) value = combine(value, parts[warp]);
  return value;
}
__device__ float BlockMax(float value) {
  return BlockReduce(value, [](float a, float b) { return fmaxf(a, b); });
}
__device__ float BlockSum(float value) {
  return BlockReduce(value, [](float a, float b) { return a + b; });
}

// The best of key[0, count), ties to the lower index; its key becomes 0.
__device__ int PopBest(std::uint32_t* key, int count) {
  using Ranked = unsigned long long;  // the key above, the complement of the index below
  Ranked best = 0;
  for (int i = threadIdx.x; i < count; i += kThreads) {
    const Ranked candidate = Ranked{key[i]} << 32 | (0xffffffffu - static_cast<unsigned>(i));
    best = candidate > best ? candidate : best;
  }
  best = BlockReduce(best, [](Ranked a, Ranked b) { return a > b ? a : b; });
  const int index = static_cast<int>(0xffffffffu - static_cast<unsigned>(best));
  if (threadIdx.x == 0) key[index] = 0;
  __syncthreads();
  return index;
}

// Keys of the groups, then of the experts outside the best of them.
__device__ void MaskGroups(const TopkRoutingLaunch& launch, std::uint32_t* key, std::uint32_t* group_key) {
  const PlainRule& rule = launch.rule;
  const int size = launch.e / rule.n_group;
  for (int group = threadIdx.x; group < rule.n_group; group += kThreads) {
    float first = -kInfinity, second = -kInfinity;
    for (int i = 0; i < size; ++i) {
      const float value = ValueOf(key[group * size + i]);
      second = fmaxf(second, fminf(first, value));
      first = fmaxf(first, value);
    }
    group_key[group] = KeyOf(rule.group_score == PlainRule::GroupScore::kTop2Sum ? first + second : first);
  }
  __syncthreads();
  for (int i = 0; i < rule.topk_group; ++i) PopBest(group_key, rule.n_group);
  const std::uint32_t masked = KeyOf(MaskedChoice(launch));
  for (int expert = threadIdx.x; expert < launch.e; expert += kThreads) {
    if (group_key[expert / size] != 0) key[expert] = masked;  // a chosen group's key is 0
  }
  __syncthreads();
}

__device__ void SparseMixer(const TopkRoutingLaunch& launch, const float* logits, std::uint32_t* key, Chosen& chosen) {
  int first = -1;
  for (int round = 0; round < 2; ++round) {
    float top = -kInfinity, sum = 0;
    for (int i = threadIdx.x; i < launch.e; i += kThreads) top = fmaxf(top, i == first ? -kInfinity : logits[i]);
    top = BlockMax(top);
    for (int i = threadIdx.x; i < launch.e; i += kThreads) {
      if (i != first && IsNear(launch.rule, top, logits[i])) sum += __expf(logits[i] - top);
    }
    sum = BlockSum(sum);
    first = PopBest(key, launch.e);
    chosen.Set(round, first);
    if (threadIdx.x % 32 == round) chosen.weight[0] = 1.0f / sum;
  }
}

__global__ void __launch_bounds__(kThreads) BlockKernel(const __grid_constant__ TopkRoutingLaunch launch) {
  extern __shared__ std::uint32_t key[];  // [e], then one for each group
  const PlainRule& rule = launch.rule;
  const std::int64_t row = blockIdx.x;
  const float* const logits = launch.logits + row * launch.e;

  RowStats stats = {.top = -kInfinity};
  int nan = 0;
  for (int i = threadIdx.x; i < launch.e; i += kThreads) {
    nan |= isnan(logits[i]);
    stats.top = fmaxf(stats.top, logits[i]);
  }
  nan = __syncthreads_or(nan);
  stats.top = BlockMax(stats.top);
  if (HasNoScores(rule, nan != 0, stats.top)) {
    if (threadIdx.x < 32) WriteNanRow(launch, row);
    return;
  }
  if (rule.score == PlainRule::Score::kSoftmax) {
    float sum = 0;
    for (int i = threadIdx.x; i < launch.e; i += kThreads) sum += __expf(logits[i] - stats.top);
    stats.sum = BlockSum(sum);
  }
  for (int i = threadIdx.x; i < launch.e; i += kThreads) {
    const float bias = launch.correction_bias == nullptr ? 0.0f : launch.correction_bias[i];
    key[i] = KeyOf(ChoiceOf(launch, stats, logits[i], bias));
  }
  __syncthreads();
  if (rule.group_score != PlainRule::GroupScore::kNone) MaskGroups(launch, key, key + launch.e);

  Chosen chosen;
  if (rule.weigh == PlainRule::Weigh::kSparseMixer) {
    SparseMixer(launch, logits, key, chosen);
  } else {
    for (int j = 0; j < launch.k; ++j) chosen.Set(j, PopBest(key, launch.e));
  }
  if (threadIdx.x >= 32) return;
  if (rule.weigh != PlainRule::Weigh::kSparseMixer) Weigh(launch, stats, logits, chosen);
  WriteRow(launch, row, chosen);
}

}  // namespace

int LaunchTopkRoutingBlock(const TopkRoutingLaunch& launch, void* stream) {
  // At most 32 KiB: e and n_group are at most 4096.
  const std::size_t shared = (launch.e + launch.rule.n_group) * sizeof(std::uint32_t);
  BlockKernel<<<static_cast<unsigned>(launch.n), kThreads, shared, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace expertd::cuda
