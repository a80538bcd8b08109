// The order in which a persistent grid takes the tiles of ragged groups, found on the device: expert by expert, weight
// tile by weight tile, token tiles fastest, so that blocks that run together share weights in L2.
#pragma once

#include <cstdint>

namespace expertd::cuda {

struct GroupTile {
  int expert;
  int first_position, positions;  // of this tile
  int weight_tile;
};

// The sum of the values of threads before this one. By all threads of the block, kThreads of them; waits for them.
template <int kThreads>
__device__ int ExclusiveScan(int value) {
  __shared__ int warp_sum[kThreads / 32];
  const int lane = threadIdx.x % 32;
  int inclusive = value;
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, step);
    if (lane >= step) inclusive += other;
  }
  if (lane == 31) warp_sum[threadIdx.x / 32] = inclusive;
  __syncthreads();
  for (int warp = 0; warp < threadIdx.x / 32; ++warp) inclusive += warp_sum[warp];
  return inclusive - value;
}
// to[i] = the sum of count_of(j) over j < i, for i in [0, size]; count_of(i) may read to[i]. As above, and waits again
// at the end.
template <int kThreads, typename CountOf>
__device__ void RunningSums(int size, std::int32_t* to, const CountOf& count_of) {
  const int per_thread = (size + kThreads - 1) / kThreads;
  const int begin = min(static_cast<int>(threadIdx.x) * per_thread, size), end = min(begin + per_thread, size);
  int sum = 0;
#pragma unroll 1
  for (int i = begin; i < end; ++i) sum += count_of(i);
  int before = ExclusiveScan<kThreads>(sum);
#pragma unroll 1
  for (int i = begin; i < end; ++i) {
    const int count = count_of(i);
    to[i] = before;
    before += count;
  }
  if (threadIdx.x == kThreads - 1) to[size] = before;
  __syncthreads();
}

class TileSchedule {
 public:
  // By all threads of the block, kThreads of them; `starts` [experts + 1] in shared memory. Waits for the block.
  template <int kThreads>
  __device__ void Build(const std::int32_t* offsets, int experts, int tokens, int weight_tiles, std::int32_t* starts) {
    offsets_ = offsets, starts_ = starts;
    experts_ = experts, tokens_ = tokens, weight_tiles_ = weight_tiles;
    RunningSums<kThreads>(experts, starts, [this](int e) { return TilesOf(e); });
  }

  // From now on, the same offsets are read here.
  __device__ void ReadFrom(const std::int32_t* offsets) { offsets_ = offsets; }

  // The same token tiles, of weights that are divided otherwise.
  __device__ TileSchedule With(int weight_tiles) const {
    TileSchedule other = *this;
    other.weight_tiles_ = weight_tiles;
    return other;
  }

  __device__ std::int64_t tiles() const { return std::int64_t{starts_[experts_]} * weight_tiles_; }
  __device__ int weight_tiles() const { return weight_tiles_; }
  // Token tiles of the experts before this one.
  __device__ int first_token_tile(int expert) const { return starts_[expert]; }

  // `index` < tiles().
  __device__ GroupTile At(std::int64_t index) const {
    int low = 0, high = experts_;  // starts[low] * weight_tiles <= index < starts[high] * weight_tiles
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (std::int64_t{starts_[middle]} * weight_tiles_ <= index ? low : high) = middle;
    }
    const auto within = static_cast<unsigned>(index - std::int64_t{starts_[low]} * weight_tiles_);
    const unsigned token_tiles = starts_[low + 1] - starts_[low];
    GroupTile tile;
    tile.expert = low;
    tile.weight_tile = within / token_tiles;
    tile.first_position = offsets_[low] + (within % token_tiles) * tokens_;
    tile.positions = min(tokens_, offsets_[low + 1] - tile.first_position);
    return tile;
  }

 private:
  __device__ int TilesOf(int expert) const { return (offsets_[expert + 1] - offsets_[expert] + tokens_ - 1) / tokens_; }

  const std::int32_t* offsets_;
  const std::int32_t* starts_;
  int experts_, tokens_, weight_tiles_;
};

}  // namespace expertd::cuda
