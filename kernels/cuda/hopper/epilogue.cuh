// What becomes of a tile's sums: activation and rounding, a way through shared memory that turns features by tokens
// into rows, and rows to memory, by the warpgroup that multiplied: the ring fills up for the next tile meanwhile, and
// the other warpgroup has the tensor cores. Last, the second product is told.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/gates.cuh"
#include "kernels/cuda/hopper/pipeline.cuh"
#include "kernels/cuda/hopper/quantise.cuh"
#include "kernels/cuda/hopper/work.cuh"

namespace expertd::cuda {

// A consumer's place in the product: the sums' rows that its thread holds.
struct Place {
  int group, warp, lane;  // warpgroup; warp of it
  // The shuffle tells the compiler that a warp's lanes agree; otherwise it serializes products after a branch on it.
  __device__ Place()
      : group(__shfl_sync(0xffffffffu, threadIdx.x / 128, 0)), warp(threadIdx.x / 32 % 4), lane(threadIdx.x % 32) {}
  __device__ int row() const { return warp * 16 + lane / 4; }  // of the 64, and that + 8
};

// The first feature that 64 rows of gate and up, the `block`th of the tile, come to.
template <FusedTileId kId>
__device__ int UpFeature(const WorkItem& item, int block) {
  return item.column * ShapeOf(kId).weights() / 2 + block * 32;
}

// Results of eight tokens as stmatrix takes them: kAcross blocks of 8 x 8, side by side, features by tokens.
template <int kAcross>
struct ResultBlocks {
  std::uint32_t word[kAcross];
};

// Rows of 64 weights are 8 gate rows, 8 up rows, and so on, so that a thread holds both of a feature: sums[4 i] and
// [4 i + 2] are gate and up of token 8 i + 2 (lane % 4), the odd ones of the next token.
template <FusedTileId kId, Gate kGate, int kTokens>
class UpResults {
  static constexpr int kBlocks = ShapeOf(kId).blocks;

 public:
  __device__ UpResults(const FusedForwardLaunch& launch, const WorkItem& item, const Place& place,
                       const float (&sums)[ShapeOf(kId).blocks][kTokens / 2])
      : launch_(launch), sums_(sums) {
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const int feature =
          UpFeature<kId>(item, block * ShapeOf(kId).groups + place.group) + place.warp * 8 + place.lane / 4;
      if (launch.gate_up_bias == nullptr || feature >= launch.f) continue;
      const float* const bias = launch.gate_up_bias + item.expert * 2 * launch.f + feature;
      gate_bias_[block] = bias[0], up_bias_[block] = bias[launch.f];
    }
  }
  // Those of the `i`th eight tokens.
  __device__ ResultBlocks<kBlocks> operator()(int i) const {
    const GateParams params = {kGate, launch_.limit, launch_.alpha};
    ResultBlocks<kBlocks> results;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
      const auto value = [&](int odd) {
        return Activate<kGate>(sums_[block][4 * i + odd] + gate_bias_[block],
                               sums_[block][4 * i + 2 + odd] + up_bias_[block], params);
      };
      results.word[block] = PackBf16(value(0), value(1));
    }
    return results;
  }

 private:
  const FusedForwardLaunch& launch_;
  const float (&sums_)[kBlocks][kTokens / 2];
  float gate_bias_[kBlocks] = {}, up_bias_[kBlocks] = {};
};

// All tokens' results through `lines` in shared memory, as many at once as fit. `results` gives the blocks of eight
// tokens, `sync` waits for all who share the lines, `take` brings lines of the tokens from `first` on to memory. A
// lane's blocks go to `chunk`, 16 bytes each.
template <FusedTileId kId, int kTokens, int kAcross, class Results, class Sync, class Take>
__device__ void StoreThroughShared(std::uint32_t lines, int pitch, int chunk, int lane, const Results& results,
                                   const Sync& sync, const Take& take) {
  constexpr int kAtOnce = StagedTokens(ShapeOf(kId)) / 8, kAll = kTokens / 8;
  // Where a lane's 16 bytes go: x2 and x4 stores have a block for every eight lanes, side by side first.
  const std::uint32_t to = lines + (lane % 8 + lane / (8 * kAcross) % (4 / kAcross) * 8) * pitch + chunk * 16;
#pragma unroll
  for (int first = 0; first < kAll; first += kAtOnce) {
    sync();
#pragma unroll
    for (int i = first; i < kAll && i < first + kAtOnce; i += 2) {
      const ResultBlocks<kAcross> eight = results(i);
      // Past an odd number of eights: once more, to lines that nobody takes.
      const ResultBlocks<kAcross> next = i + 1 < kAll ? results(i + 1) : eight;
      const std::uint32_t at = to + (i - first) * 8 * pitch;
      if constexpr (kAcross == 2) {
        StoreTransposed(at, eight.word[0], eight.word[1], next.word[0], next.word[1]);
      } else {
        StoreTransposed(at, eight.word[0], next.word[0]);
      }
    }
    sync();
    take(first * 8);
  }
}

// Where a thread of a warpgroup takes 16 bytes of a line to: those of token 0, and bytes from one token to the next.
struct RowChunk {
  unsigned char* to;  // null: past the matrix
  std::int64_t pitch;
};

// Results of a warpgroup, in rows of kAcross * 32 features; only its own threads wait for each other. Lines whose
// `slots`, if any, are negative are left out. Ordinary stores: bulk copies of single lines took 50 cycles each.
template <FusedTileId kId, int kTokens, int kAcross, class Results>
__device__ void StoreRows(const FusedShared<kId>& shared, const Place& place, int chunk, int rows, const RowChunk& row,
                          const std::int32_t* slots, const Results& results) {
  constexpr int kChunks = kAcross * 4, kStride = 128 / kChunks, kStaged = StagedTokens(ShapeOf(kId));
  constexpr int kLines = (kStaged + kStride - 1) / kStride;  // of a thread
  const std::uint32_t lines = shared.Staging(place.group);
  const int thread = threadIdx.x % 128;
  const auto take = [&](int first) {
    uint4 line[kLines];
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int token = thread / kChunks + i * kStride;
      if (token < kStaged) line[i] = LoadShared(lines + token * kStagedPitch + thread % kChunks * 16);
    }
#pragma unroll
    for (int i = 0; i < kLines; ++i) {
      const int token = thread / kChunks + i * kStride;
      if (token >= kStaged || first + token >= rows || row.to == nullptr) continue;
      if (slots != nullptr && slots[first + token] < 0) continue;
      *reinterpret_cast<uint4*>(row.to + (first + token) * row.pitch) = line[i];
    }
  };
  StoreThroughShared<kId, kTokens, kAcross>(
      lines, kStagedPitch, chunk, place.lane, results, [&] { SyncWarpgroup(1 + place.group); }, take);
}

// A warpgroup's results of the first product: of each block 32 features.
template <FusedTileId kId, Gate kGate, int kTokens>
__device__ void StoreUp(const FusedForwardLaunch& launch, const FusedShared<kId>& shared, const WorkItem& item,
                        const Place& place, const UpResults<kId, kGate, kTokens>& results) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const int taken = threadIdx.x % (kTile.blocks * 4);
  const int feature = UpFeature<kId>(item, taken / 4 * kTile.groups + place.group) + taken % 4 * 8;
  auto* const hidden = static_cast<unsigned char*>(launch.hidden) + (std::int64_t{item.first} * launch.f + feature) * 2;
  StoreRows<kId, kTokens, kTile.blocks>(shared, place, place.warp + place.lane / 8 % kTile.blocks * 4, item.rows,
                                        {feature < launch.f ? hidden : nullptr, launch.f * 2}, nullptr, results);
}

// Those of e4m3: the 128 features of a token, of all warpgroups, become a line of codes and its scale.
template <FusedTileId kId, Gate kGate, int kTokens>
__device__ void QuantiseUp(const FusedForwardLaunch& launch, const FusedShared<kId>& shared, const WorkItem& item,
                           const Place& place, const UpResults<kId, kGate, kTokens>& results) {
  constexpr FusedTile kTile = ShapeOf(kId);
  constexpr int kLines = 32 / kQuantisingLanes, kStaged = StagedTokens(kTile);  // of a warp at once
  const int half = place.lane / kQuantisingLanes, eight = place.lane % kQuantisingLanes;
  const bool inside = item.column * kPackedK + eight * 8 < launch.f;
  const std::int64_t pitch = CeilDiv(launch.f, kPackedK) * kPackedK;
  auto* const codes = static_cast<unsigned char*>(launch.hidden) + item.first * pitch + item.column * kPackedK;
  float* const scales = launch.hidden_scales + item.column * launch.positions + item.first;
  const std::uint32_t lines = shared.Staging(0);
  const auto take = [&](int first) {
#pragma unroll
    for (int i = 0; i < kStaged; i += kLines * kMultiplyingWarps<kId>) {
      const int token = i + (place.group * 4 + place.warp) * kLines + half;
      const bool taken = token < kStaged && first + token < item.rows;
      const Fp8Eight line =
          QuantiseEight(taken && inside ? LoadShared(lines + token * kQuantisedPitch + eight * 16) : uint4{});
      if (!taken) continue;
      *reinterpret_cast<uint2*>(codes + (first + token) * pitch + eight * 8) = line.codes;
      if (eight == 0) scales[first + token] = line.scale;
    }
  };
  // Barriers up to the number of warpgroups are their own.
  const auto sync = [] { SyncSome<1 + ShapeOf(kId).groups, kMultiplyingWarps<kId> * 32>(); };
  StoreThroughShared<kId, kTokens, kTile.blocks>(
      lines, kQuantisedPitch, (place.lane / 8 % kTile.blocks * kTile.groups + place.group) * 4 + place.warp, place.lane,
      results, sync, take);
  sync();  // a warpgroup's results of the second product may overwrite what the other one reads here
}

// A warpgroup's results of the second product, or of the only one: of each block 64 features.
template <FusedTileId kId, int kTokens>
__device__ void StoreDown(const FusedForwardLaunch& launch, const FusedShared<kId>& shared, const WorkItem& item,
                          const Place& place, const float (&sums)[ShapeOf(kId).blocks][kTokens / 2]) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const std::int32_t* const slots =
      launch.one_product() && launch.sorted_slots != nullptr ? launch.sorted_slots + item.first : nullptr;
#pragma unroll
  for (int block = 0; block < kTile.blocks; ++block) {
    const int feature = item.column * kTile.weights() + (block * kTile.groups + place.group) * 64;
    if (feature >= launch.d) continue;  // the matrix ends with a whole block
    const auto rounded = [&](int i) {
      return ResultBlocks<2>{{PackBf16(sums[block][4 * i], sums[block][4 * i + 1]),
                              PackBf16(sums[block][4 * i + 2], sums[block][4 * i + 3])}};
    };
    const std::int64_t at = std::int64_t{item.first} * launch.d + feature + threadIdx.x % 8 * 8;
    StoreRows<kId, kTokens, 2>(shared, place, place.warp * 2 + place.lane / 8 % 2, item.rows,
                               {static_cast<unsigned char*>(launch.slots) + at * 2, launch.d * 2}, slots, rounded);
  }
}

// Tells the second product when rows of it are there, and spares those who store them the wait; by one warp.
template <FusedTileId kId>
__device__ void TellOfResults(const FusedForwardLaunch& launch, const FusedShared<kId>& shared,
                              WorkRing<kRingReaders<kId>> ring) {
  const Counters counters = {launch.counters};
  unsigned stored = 0;  // tiles of the first product, so far
  for (;;) {
    const WorkItem item = ring.Pop();
    if (item.phase == Phase::kDone) return;
    if (item.phase == Phase::kDown) continue;
    shared.Stored(stored).Wait(shared.StoredParity(stored));
    ++stored;
    FenceAsyncGlobal();
    __threadfence();
    if (threadIdx.x % 32 == 0) atomicAdd(counters.up_done(item.token_tile), 1);
  }
}

}  // namespace expertd::cuda
