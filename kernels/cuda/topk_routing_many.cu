// Many rows, up to 512 experts and 8 chosen: several rows share a warp, kLanes lanes to each. A lane sorts its logits
// eight at a time and keeps its best eight; sorted lists of two lanes merge into one in four steps, so that after
// log2(kLanes) exchanges each lane has the row's best.
//
// Comparing is what costs. So the lists first hold 32 bits: the expert in the low bits of its own choice key, ordered
// by two instructions an exchange. Where two candidates that matter agree in all bits that the expert left, which is
// rare, the warp does it again with 64 bits.
//
// Weights come out in the bits of topk_routing.cu: the same functions, and sums over the same tree.
#include <cuda_runtime.h>

#include "kernels/cuda/topk_routing.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kBest = kRoutingChunk;

// A candidate: its key above, the complement of its expert below, so that ties go to the lower expert.
struct Exact {
  using Item = unsigned long long;
  __device__ static Item Of(std::uint32_t key, int expert) {
    return Item{key} << 32 | (0xffffffffu - static_cast<unsigned>(expert));
  }
  __device__ static int ExpertOf(Item item) { return static_cast<int>(0xffffffffu - static_cast<unsigned>(item)); }
};
// The same in 32 bits, for kExperts experts, a power of two: in the true order wherever KeyBits differ.
template <unsigned kExperts>
struct Short {
  using Item = std::uint32_t;
  static constexpr unsigned kMask = kExperts - 1;
  __device__ static Item Of(std::uint32_t key, int expert) { return (key & ~kMask) | (kMask - expert); }
  __device__ static int ExpertOf(Item item) { return static_cast<int>(kMask - (item & kMask)); }
  __device__ static Item KeyBits(Item item) { return item & ~kMask; }
};

// The best candidates, in falling order.
template <typename Item>
struct BestList {
  Item item[kBest];

  __device__ void Exchange(int high, int low) {
    const Item a = item[high], b = item[low];
    item[high] = max(a, b);
    item[low] = min(a, b);
  }
  // Batcher's odd-even merge sort of eight.
  __device__ void Sort() {
    constexpr int kSteps[][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6}, {5, 7}, {1, 2}, {5, 6},
                                 {0, 4}, {1, 5}, {2, 6}, {3, 7}, {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};
#pragma unroll
    for (const auto& step : kSteps) Exchange(step[0], step[1]);
  }
  // Keeps the best of both lists: opposite ends' better ones are the best, and rise and fall once.
  __device__ void Merge(const BestList& other) {
#pragma unroll
    for (int i = 0; i < kBest; ++i) item[i] = max(item[i], other.item[kBest - 1 - i]);
#pragma unroll
    for (int step = kBest / 2; step > 0; step /= 2) {
#pragma unroll
      for (int i = 0; i < kBest; ++i) {
        if ((i & step) == 0) Exchange(i, i + step);
      }
    }
  }
};

// Memory of a block: V values of each thread, in runs that neither whole rows nor single lanes meet in the same bank.
template <int V>
struct Values {
  float value[kThreads][V + 4];
};

// Loads the rows of a warp with neighbouring lanes at neighbouring addresses, and hands each lane its V experts.
template <int kLanes, int V>
__device__ void LoadRow(const TopkRoutingLaunch& launch, const float* row, Values<V>& values, float (&logit)[V]) {
  const int lane = threadIdx.x % kLanes;
  float4 part[V / 4];  // all loads before the first use: one wait for memory instead of V / 4
  if (launch.vectorised) {
#pragma unroll
    for (int i = 0; i < V / 4; ++i) {
      const int expert = (i * kLanes + lane) * 4;
      part[i] = make_float4(-kInfinity, -kInfinity, -kInfinity, -kInfinity);
      if (expert < launch.e) part[i] = *reinterpret_cast<const float4*>(row + expert);
    }
  } else {
#pragma unroll
    for (int i = 0; i < V / 4; ++i) {
      float value[4];
      LoadValues(row, (i * kLanes + lane) * 4, launch.e, false, value);
      part[i] = make_float4(value[0], value[1], value[2], value[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < V / 4; ++i) {
    const int expert = (i * kLanes + lane) * 4;
    *reinterpret_cast<float4*>(&values.value[threadIdx.x - lane + expert / V][expert % V]) = part[i];
  }
  __syncwarp();
#pragma unroll
  for (int i = 0; i < V; i += 4) {
    float part[4];
    Load(&values.value[threadIdx.x][i], part);
#pragma unroll
    for (int j = 0; j < 4; ++j) logit[i + j] = part[j];
  }
}

// The row's best by the choices in `values`; chunks of eight whose bit is set in `masked` count as `masked_choice`.
template <typename Rank, int kLanes, int V>
__device__ BestList<typename Rank::Item> ChooseBest(const TopkRoutingLaunch& launch, const Values<V>& values,
                                                    unsigned masked) {
  using List = BestList<typename Rank::Item>;
  const int first = threadIdx.x % kLanes * V;
  List best;
#pragma unroll 1
  for (int c = 0; c < V / kRoutingChunk; ++c) {
    float choice[kRoutingChunk];
    Load(&values.value[threadIdx.x][c * kRoutingChunk], choice);
    const bool is_masked = (masked >> c & 1) != 0;
    List chunk;
#pragma unroll
    for (int i = 0; i < kRoutingChunk; ++i) {
      const int expert = first + c * kRoutingChunk + i;
      const std::uint32_t key = KeyOf(is_masked ? MaskedChoice(launch) : choice[i]);
      chunk.item[i] = Rank::Of(expert < launch.e ? key : 0, expert);
    }
    chunk.Sort();
    if (c == 0) {
      best = chunk;
    } else {
      best.Merge(chunk);
    }
  }
#pragma unroll 1
  for (int step = 1; step < kLanes; step *= 2) {
    List other;
#pragma unroll
    for (int i = 0; i < kBest; ++i) other.item[i] = __shfl_xor_sync(kAllLanes, best.item[i], step);
    best.Merge(other);
  }
  return best;
}

// Whether this lane sees a reason to doubt the short list: neighbours of equal key bits among the first k, or more
// candidates than k that reach the last one's.
template <typename Rank, int kLanes, int V>
__device__ bool IsDoubtful(const TopkRoutingLaunch& launch, const Values<V>& values, unsigned masked,
                           const BestList<std::uint32_t>& best) {
  bool equal = false;
  std::uint32_t last = 0;
#pragma unroll
  for (int i = 0; i < kBest; ++i) {
    if (i < launch.k) last = Rank::KeyBits(best.item[i]);
    if (i > 0 && i < launch.k) equal = equal || Rank::KeyBits(best.item[i]) == Rank::KeyBits(best.item[i - 1]);
  }
  int reach = 0;
#pragma unroll 1
  for (int c = 0; c < V / kRoutingChunk; ++c) {
    float choice[kRoutingChunk];
    Load(&values.value[threadIdx.x][c * kRoutingChunk], choice);
    const bool is_masked = (masked >> c & 1) != 0;
#pragma unroll
    for (int i = 0; i < kRoutingChunk; ++i) {
      const float value = is_masked ? MaskedChoice(launch) : choice[i];
      reach += Rank::KeyBits(KeyOf(value)) >= last;
    }
  }
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) reach += __shfl_xor_sync(kAllLanes, reach, step);
  return equal || reach != launch.k;
}

// Combines over the kLanes lanes of a row.
template <int kLanes>
__device__ float RowMax(float value) {
#pragma unroll
  for (int step = 1; step < kLanes; step *= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, step));
  return value;
}

// Sum of the exponentials: kPiece values in turn, as a lane of topk_routing.cu adds its own, and a tree over the
// pieces.
template <int kLanes, int V>
__device__ float SumOfExponentials(const float (&logit)[V], float top) {
  constexpr int kPiece = V * kLanes / 32;
  float part[V / kPiece];
#pragma unroll
  for (int piece = 0; piece < V / kPiece; ++piece) {
    part[piece] = 0;
#pragma unroll
    for (int i = 0; i < kPiece; ++i) part[piece] += __expf(logit[piece * kPiece + i] - top);
  }
#pragma unroll
  for (int step = 1; step < V / kPiece; step *= 2) {
#pragma unroll
    for (int piece = 0; piece + step < V / kPiece; piece += 2 * step) part[piece] += part[piece + step];
  }
  return WarpSum<kLanes>(part[0]);
}

// Bit c: the lane's chunk c is of a group that is not among the best. A group is 1, 2 or 4 chunks of one lane.
template <int kLanes, int V>
__device__ unsigned MaskedChunks(const TopkRoutingLaunch& launch, const float (&choice)[V], int lane) {
  constexpr int kChunks = V / kRoutingChunk;
  const PlainRule& rule = launch.rule;
  const int size = launch.e / rule.n_group, chunks_of_group = size / kRoutingChunk;
  float first[kChunks], second[kChunks];
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    first[c] = second[c] = -kInfinity;
#pragma unroll
    for (int i = 0; i < kRoutingChunk; ++i) {
      const float value = choice[c * kRoutingChunk + i];
      second[c] = fmaxf(second[c], fminf(first[c], value));
      first[c] = fmaxf(first[c], value);
    }
  }
#pragma unroll
  for (int step = 1; step < kChunks; step *= 2) {
    if (step >= chunks_of_group) break;
#pragma unroll
    for (int c = 0; c + step < kChunks; c += 2 * step) {  // the first chunk of each group gets the group's
      second[c] = fmaxf(fminf(first[c], first[c + step]), fmaxf(second[c], second[c + step]));
      first[c] = fmaxf(first[c], first[c + step]);
    }
  }
  std::uint32_t key[kChunks];
  int better[kChunks] = {};
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    const bool exists = lane * V + c * kRoutingChunk < launch.e;
    key[c] = exists ? KeyOf(rule.group_score == PlainRule::GroupScore::kTop2Sum ? first[c] + second[c] : first[c]) : 0;
  }
#pragma unroll 1
  for (int other = 0; other < kLanes; ++other) {
#pragma unroll
    for (int d = 0; d < kChunks; ++d) {
      if (d % chunks_of_group != 0) continue;
      const std::uint32_t rival = __shfl_sync(kAllLanes, key[d], other, kLanes);
#pragma unroll
      for (int c = 0; c < kChunks; ++c) {
        const bool before = other < lane || (other == lane && d < c);
        better[c] += rival > key[c] || (rival == key[c] && before);
      }
    }
  }
  unsigned masked = 0;
#pragma unroll
  for (int c = 0; c < kChunks; ++c) {
    if (c % chunks_of_group == 0 && better[c] >= rule.topk_group) masked |= ((1u << chunks_of_group) - 1) << c;
  }
  return masked;
}

// Weights and ids of the row's best, spread over its lanes: neighbouring ranks in one lane.
template <int kLanes>
__device__ void WeighAndWrite(const TopkRoutingLaunch& launch, std::int64_t row, bool writes, int lane,
                              const int (&expert)[kBest], const RowStats& stats, bool no_scores) {
  constexpr int kOwn = kLanes < kBest ? kBest / kLanes : 1;
  const PlainRule& rule = launch.rule;
  const float* const logits = launch.logits + row * launch.e;
  int id[kOwn];
  float logit[kOwn], weight[kOwn] = {};
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int rank = lane * kOwn + i;
    id[i] = rank;
#pragma unroll
    for (int r = 0; r < kBest; ++r) {
      if (r == rank && !no_scores) id[i] = expert[r];
    }
    logit[i] = rank < launch.k ? logits[id[i]] : -kInfinity;
  }
  float top = 0, sum = 1;
  if (rule.weigh == PlainRule::Weigh::kSoftmaxOfChosen) {
    top = -kInfinity, sum = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) top = fmaxf(top, logit[i]);
    top = RowMax<kLanes>(top);
#pragma unroll
    for (int i = 0; i < kOwn; ++i) sum += lane * kOwn + i < launch.k ? __expf(logit[i] - top) : 0.0f;
    sum = WarpSum<kLanes>(sum);
  }
  float total = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    if (lane * kOwn + i < launch.k) weight[i] = WeightOf(rule, stats, logit[i], top, sum);
    if (no_scores) weight[i] = __uint_as_float(0x7fc00000u);
    total += weight[i];
  }
  const float divisor = DivisorOf(rule, WarpSum<kLanes>(total));
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int rank = lane * kOwn + i;
    if (rank >= launch.k || !writes) continue;
    launch.ids[row * launch.k + rank] = id[i];
    launch.weights[row * launch.k + rank] = weight[i] / divisor * rule.scale;
  }
}

template <int kLanes, int V>
__global__ void __launch_bounds__(kThreads) ManyRowsKernel(const __grid_constant__ TopkRoutingLaunch launch) {
  __shared__ Values<V> values;
  const PlainRule& rule = launch.rule;
  const int lane = threadIdx.x % kLanes;
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const std::int64_t row = min(index, launch.n - 1);  // rows past the last go along with their warp, unwritten

  float logit[V];
  LoadRow<kLanes>(launch, launch.logits + row * launch.e, values, logit);
  bool nan = false;
  RowStats stats = {.top = -kInfinity};
#pragma unroll
  for (int i = 0; i < V; ++i) nan = nan || isnan(logit[i]), stats.top = fmaxf(stats.top, logit[i]);
  const unsigned votes = __ballot_sync(kAllLanes, nan) >> (threadIdx.x % 32 - lane);
  stats.top = RowMax<kLanes>(stats.top);
  const bool no_scores = HasNoScores(rule, (votes & ((1u << kLanes) - 1)) != 0, stats.top);
  if (rule.score == PlainRule::Score::kSoftmax) stats.sum = SumOfExponentials<kLanes>(logit, stats.top);

  if (!ChoosesByLogit(launch)) {
    float bias[V] = {};
    if (launch.correction_bias != nullptr) {
      LoadValues(launch.correction_bias, lane * V, launch.e, launch.vectorised, bias);
    }
#pragma unroll
    for (int i = 0; i < V; i += 4) {
#pragma unroll
      for (int j = i; j < i + 4; ++j) logit[j] = ChoiceOf(launch, stats, logit[j], bias[j]);
      const float part[4] = {logit[i], logit[i + 1], logit[i + 2], logit[i + 3]};
      Store(&values.value[threadIdx.x][i], part);
    }
  }
  const bool grouped = rule.group_score != PlainRule::GroupScore::kNone;
  const unsigned masked = grouped ? MaskedChunks<kLanes>(launch, logit, lane) : 0;

  using Quick = Short<kLanes * V>;
  const auto best = ChooseBest<Quick, kLanes>(launch, values, masked);
  int expert[kBest];
#pragma unroll
  for (int i = 0; i < kBest; ++i) expert[i] = Quick::ExpertOf(best.item[i]);
  if (__any_sync(kAllLanes, IsDoubtful<Quick, kLanes>(launch, values, masked, best) && !no_scores)) {
    const auto exact = ChooseBest<Exact, kLanes>(launch, values, masked);
#pragma unroll
    for (int i = 0; i < kBest; ++i) expert[i] = Exact::ExpertOf(exact.item[i]);
  }
  WeighAndWrite<kLanes>(launch, row, index == row, lane, expert, stats, no_scores);
}

template <int kLanes, int V>
int Launch(const TopkRoutingLaunch& launch, void* stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv(launch.n * kLanes, kThreads));
  ManyRowsKernel<kLanes, V><<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch);
  return cudaGetLastError();
}

}  // namespace

int LaunchTopkRoutingMany(const TopkRoutingLaunch& launch, void* stream) {
  switch (launch.many.lanes * launch.many.values) {
    case 32:
      return Launch<4, 8>(launch, stream);
    case 64:
      return Launch<4, 16>(launch, stream);
    case 128:
      return launch.many.lanes == 8 ? Launch<8, 16>(launch, stream) : Launch<4, 32>(launch, stream);
    case 256:
      return Launch<8, 32>(launch, stream);
    default:
      return Launch<16, 32>(launch, stream);
  }
}

}  // namespace expertd::cuda
