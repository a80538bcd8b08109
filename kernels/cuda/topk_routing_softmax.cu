// Softmax without bias or groups, up to 512 experts and 8 chosen: what most models do, for any number of rows. kLanes
// lanes share a row. Each cuts its logits, puts the expert's number into the freed bits, sorts them by fours and keeps
// its best four; pairs of lanes then hold eight in falling order, four each, and pairs merge.
//
// Comparing is what costs (half rate), so nothing is compared twice: one minimum or maximum orders value and expert.
// What that leaves in doubt is found by counting the logits that reach the last one's cut, and chosen again exactly, by
// the whole warp: logits that agree in all bits that were left, and rows whose best lie with one lane.
#include <cuda_runtime.h>

#include "kernels/cuda/topk_routing.cuh"

namespace expertd::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kKept = 4;              // of a lane
constexpr int kBest = kRoutingChunk;  // of a row, by two lanes
constexpr float kLowest = -3.402823466e38f;

__device__ void Exchange(float& high, float& low) {
  const float a = high, b = low;
  high = fmaxf(a, b), low = fminf(a, b);
}
// Four that rise and fall at most once, into falling order.
__device__ void Settle(float (&item)[kKept]) {
  Exchange(item[0], item[2]), Exchange(item[1], item[3]), Exchange(item[0], item[1]), Exchange(item[2], item[3]);
}
__device__ void Sort(float (&item)[kKept]) {
  Exchange(item[0], item[1]), Exchange(item[2], item[3]);
  Exchange(item[0], item[2]), Exchange(item[1], item[3]), Exchange(item[1], item[2]);
}

// What is below the normal range becomes zero: it would be a share of a sum of at least one.
__device__ float Exponential(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.4426950408889634f));
  return result;
}

// A row of up to kRoom logits over kLanes lanes, in runs of four: run r lies with lane r % kLanes.
template <int kLanes, int V>
struct Row {
  static constexpr int kRuns = V / 4, kRoom = kLanes * V;
  static constexpr unsigned kExpertBits = kRoom - 1;
  float logit[V];

  __device__ static int Lane() { return threadIdx.x % kLanes; }
  __device__ static float Cut(float item) { return __uint_as_float(__float_as_uint(item) & ~kExpertBits); }
  __device__ static int ExpertOf(float item) { return static_cast<int>(__float_as_uint(item) & kExpertBits); }
  // The lowest float that is cut to the same value, zeros being equal.
  __device__ static float LowestOf(float item) {
    const float cut = Cut(item);
    return cut > 0 ? cut : __uint_as_float(__float_as_uint(cut) | 0x80000000u | kExpertBits);
  }

  __device__ void Load(const float* from, int e, bool vectorised) {
    float part[kRuns][4];
    if (vectorised) {  // decided once, so that all loads go out together
#pragma unroll
      for (int r = 0; r < kRuns; ++r) LoadValues(from, (r * kLanes + Lane()) * 4, e, true, part[r]);
    } else {
#pragma unroll
      for (int r = 0; r < kRuns; ++r) LoadValues(from, (r * kLanes + Lane()) * 4, e, false, part[r]);
    }
#pragma unroll
    for (int i = 0; i < V; ++i) logit[i] = part[i / 4][i % 4];
  }

  __device__ float Top() const {
    float top = -kInfinity;
#pragma unroll
    for (int i = 0; i < V; ++i) top = fmaxf(top, logit[i]);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) top = fmaxf(top, __shfl_xor_sync(kAllLanes, top, step));
    return top;
  }

  // Each run in turn, and a tree over the runs' numbers from the highest bit down: the same for any kLanes.
  __device__ float SumOfExponentials(float top) const {
    float part[kRuns];
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
      part[r] = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) part[r] += Exponential(logit[4 * r + i] - top);
    }
#pragma unroll
    for (int step = kRuns / 2; step > 0; step /= 2) {
#pragma unroll
      for (int r = 0; r < step; ++r) part[r] += part[r + step];
    }
    float sum = part[0];
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    return sum;
  }

  // The row's best in falling order: four with each even lane, the next four with each odd one. `cut` is ~kExpertBits,
  // which only a register holds beside a constant in the one operation that cuts and names. Minus infinity becomes the
  // lowest float, because with a name it would be no number.
  __device__ void Best(unsigned cut, float (&item)[kKept]) const {
    float list[kRuns][kKept];
#pragma unroll
    for (int r = 0; r < kRuns; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned bits = __float_as_uint(fmaxf(logit[4 * r + i], kLowest));
        list[r][i] = __uint_as_float((bits & cut) | (r * kLanes * 4 + i));
      }
      Sort(list[r]);
    }
#pragma unroll
    for (int step = 1; step < kRuns; step *= 2) {
#pragma unroll
      for (int r = 0; r + step < kRuns; r += 2 * step) {
#pragma unroll
        for (int i = 0; i < kKept; ++i) list[r][i] = fmaxf(list[r][i], list[r + step][kKept - 1 - i]);
        Settle(list[r]);
      }
    }
#pragma unroll
    for (int i = 0; i < kKept; ++i) item[i] = __uint_as_float(__float_as_uint(list[0][i]) | Lane() * 4);
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) {
      float other[kKept];
      if (step > 1) {  // the other pair's, from its end: the better ones are the best of both
#pragma unroll
        for (int i = 0; i < kKept; ++i) other[i] = __shfl_xor_sync(kAllLanes, item[kKept - 1 - i], step + 1);
#pragma unroll
        for (int i = 0; i < kKept; ++i) item[i] = fmaxf(item[i], other[i]);
      }
#pragma unroll
      for (int i = 0; i < kKept; ++i) other[i] = __shfl_xor_sync(kAllLanes, item[step > 1 ? i : kKept - 1 - i], 1);
#pragma unroll
      for (int i = 0; i < kKept; ++i) item[i] = Lane() % 2 ? fminf(item[i], other[i]) : fmaxf(item[i], other[i]);
      Settle(item);
    }
  }

  // Logits of the whole row from `least` on.
  __device__ float CountFrom(float least) const {
    float count = 0;
#pragma unroll
    for (const float x : logit) count += x >= least ? 1.0f : 0.0f;
#pragma unroll
    for (int step = 1; step < kLanes; step *= 2) count += __shfl_xor_sync(kAllLanes, count, step);
    return count;
  }
};

// The expert of rank `lane`, exactly, by a whole warp: one round a rank.
template <int kRoom>
__device__ __noinline__ int ChooseExactly(const float* row, int e, int k, bool vectorised) {
  constexpr int kOwn = kRoom / 32;
  const int lane = threadIdx.x % 32;
  float value[kOwn];
  LoadValues(row, lane * kOwn, e, vectorised, value);
  std::uint32_t key[kOwn];
#pragma unroll
  for (int i = 0; i < kOwn; ++i) key[i] = lane * kOwn + i < e ? KeyOf(value[i]) : 0;
  int result = 0;
#pragma unroll 1
  for (int rank = 0; rank < k; ++rank) {
    std::uint32_t best = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) best = max(best, key[i]);
    const std::uint32_t top = __reduce_max_sync(kAllLanes, best);
    const int winner = __ffs(__ballot_sync(kAllLanes, best == top)) - 1;  // the lowest lane has the lowest experts
    bool open = lane == winner;
    int expert = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const bool takes = open && key[i] == top;
      expert = takes ? lane * kOwn + i : expert;
      key[i] = takes ? 0 : key[i];
      open = open && !takes;
    }
    expert = __shfl_sync(kAllLanes, expert, winner);
    if (lane == rank) result = expert;
  }
  return result;
}

// A row's first kBest lanes write a rank each: lane 0, 2, 4, 6 the first four, lane 1, 3, 5, 7 the others.
__device__ int RankOfLane(int lane) { return lane % 2 * kKept + lane / 2 % kKept; }
__device__ int LaneOfRank(int rank) { return rank / kKept + rank % kKept * 2; }

template <int kLanes, int V>
__global__ void __launch_bounds__(kThreads)
    SoftmaxKernel(const __grid_constant__ TopkRoutingLaunch launch, unsigned cut) {
  using Logits = Row<kLanes, V>;
  const int k = launch.k, lane = Logits::Lane(), rank = RankOfLane(lane);
  const int base = static_cast<int>(threadIdx.x) % 32 - lane;  // the row's first lane
  const std::int64_t index = (std::int64_t{blockIdx.x} * kThreads + threadIdx.x) / kLanes;
  const std::int64_t n = min(index, launch.n - 1);  // rows past the last go along with their warp, unwritten
  const float* const from = launch.logits + n * launch.e;
  const bool writes = index == n && lane < kBest && rank < k;

  Logits row;
  row.Load(from, launch.e, launch.vectorised);
  const RowStats stats = [&] {
    const float top = row.Top();
    return RowStats{.top = top, .sum = row.SumOfExponentials(top)};
  }();
  float item[kKept];
  row.Best(cut, item);
  const float own = lane & 4 ? (lane & 2 ? item[3] : item[2]) : (lane & 2 ? item[1] : item[0]);

  const float last = __shfl_sync(kAllLanes, own, base + LaneOfRank(k - 1));
  const float before = __shfl_sync(kAllLanes, own, base + LaneOfRank(max(rank, 1) - 1));
  const bool is_equal = lane < kBest && rank > 0 && rank < k && Logits::Cut(own) == Logits::Cut(before);
  const float reaching = row.CountFrom(Logits::LowestOf(last));  // by all lanes
  const bool is_doubtful = is_equal || reaching != k;
  unsigned doubtful = __ballot_sync(kAllLanes, is_doubtful);
  int id = min(Logits::ExpertOf(own), launch.e - 1);  // where numbers are missing, names may be too
#pragma unroll 1
  while (doubtful != 0) {
    const int first = (__ffs(doubtful) - 1) / kLanes * kLanes;
    doubtful &= kLanes == 32 ? 0 : ~(((1u << kLanes % 32) - 1) << first);
    const std::int64_t which = __shfl_sync(kAllLanes, n, first);
    const int chosen = ChooseExactly<Logits::kRoom>(launch.logits + which * launch.e, launch.e, k, launch.vectorised);
    const int exact = __shfl_sync(kAllLanes, chosen, rank);
    if (base == first) id = exact;
  }

  // The sum of a row with an infinity or what is not a number is not positive and finite either.
  const bool no_scores = !(stats.sum > 0 && stats.sum < kInfinity);
  float weight = lane < kBest && rank < k ? __fdividef(Exponential(from[id] - stats.top), stats.sum) : 0.0f;
  if (no_scores) id = rank, weight = __uint_as_float(0x7fc00000u);
  float total = weight;
#pragma unroll
  for (int step = kBest / 2; step > 0; step /= 2) total += __shfl_xor_sync(kAllLanes, total, step);
  if (!writes) return;
  launch.ids[n * k + rank] = id;
  launch.weights[n * k + rank] = weight / DivisorOf(launch.rule, total) * launch.rule.scale;
}

template <int kLanes, int V>
int Launch(const TopkRoutingLaunch& launch, void* stream) {
  const auto blocks = static_cast<unsigned>(CeilDiv(launch.n * kLanes, kThreads));
  SoftmaxKernel<kLanes, V>
      <<<blocks, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch, ~Row<kLanes, V>::kExpertBits);
  return cudaGetLastError();
}

}  // namespace

int LaunchTopkRoutingSoftmax(const TopkRoutingLaunch& launch, void* stream) {
  const bool wide = launch.softmax.lanes == 16;
  switch (launch.softmax.lanes * launch.softmax.values) {
    case 32:
      return Launch<8, 4>(launch, stream);
    case 64:
      return wide ? Launch<16, 4>(launch, stream) : Launch<8, 8>(launch, stream);
    case 128:
      return wide ? Launch<16, 8>(launch, stream) : Launch<8, 16>(launch, stream);
    case 256:
      return Launch<16, 16>(launch, stream);
    default:
      return Launch<32, 16>(launch, stream);
  }
}

}  // namespace expertd::cuda
