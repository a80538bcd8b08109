// What becomes of a tile's sums: activation and rounding, a way through a stage that turns features by tokens into
// rows, and rows to memory by a warp of its own, so that the products of the next tile need not wait. Last, the
// combine.
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

// Where this lane's 16 bytes of a transposed store go: token `lane` of the blocks stored together, chunk `chunk`.
__device__ inline std::uint32_t StagedAt(std::uint32_t staging, int token, int chunk) {
  return staging + token * kStagedPitch + chunk * 16;
}

// Rows of 64 weights are 8 gate rows, 8 up rows, and so on, so that a thread holds both of a feature: sums[4 i] and
// [4 i + 2] are gate and up of token 8 i + 2 (lane % 4), the odd ones of the next token.
template <Gate kGate, int kTokens>
__device__ void StageUp(const FusedForwardLaunch& launch, const WorkItem& item, std::uint32_t staging, int block,
                        const Place& place, float (&sums)[kTokens / 2], int first_feature) {
  const GateParams params = {kGate, launch.limit, launch.alpha};
  const int feature = first_feature + block * 32 + place.warp * 8 + place.lane / 4;
  float gate_bias = 0.0f, up_bias = 0.0f;
  if (launch.gate_up_bias != nullptr && feature < launch.f) {
    const float* const bias = launch.gate_up_bias + item.expert * 2 * launch.f + feature;
    gate_bias = bias[0], up_bias = bias[launch.f];
  }
  const auto activated = [&](int i) {
    const auto value = [&](int odd) {
      return Activate<kGate>(sums[4 * i + odd] + gate_bias, sums[4 * i + 2 + odd] + up_bias, params);
    };
    return PackBf16(value(0), value(1));
  };
  const int chunk = block * 4 + place.warp;
#pragma unroll
  for (int i = 0; i + 1 < kTokens / 8; i += 2) {
    StoreTransposed(StagedAt(staging, i * 8 + place.lane % 16, chunk), activated(i), activated(i + 1));
  }
  if constexpr (kTokens / 8 % 2 == 1) {  // the second block's lanes write where the first one's do not matter
    const std::uint32_t last = activated(kTokens / 8 - 1);
    StoreTransposed(StagedAt(staging, kTokens - 8 + place.lane % 8, chunk), last, last);
  }
}

template <int kTokens>
__device__ void StageDown(std::uint32_t staging, const Place& place, float (&sums)[kTokens / 2]) {
  const auto rounded = [&](int i, int half) { return PackBf16(sums[4 * i + 2 * half], sums[4 * i + 2 * half + 1]); };
  const int chunk = place.group % 2 * 8 + place.warp * 2 + place.lane / 8 % 2,
            token = place.lane / 16 * 8 + place.lane % 8;
#pragma unroll
  for (int i = 0; i + 1 < kTokens / 8; i += 2) {
    StoreTransposed(StagedAt(staging, i * 8 + token, chunk), rounded(i, 0), rounded(i, 1), rounded(i + 1, 0),
                    rounded(i + 1, 1));
  }
  if constexpr (kTokens / 8 % 2 == 1) {
    constexpr int kLast = kTokens / 8 - 1;
    StoreTransposed(StagedAt(staging, kLast * 8 + place.lane % 8, chunk), rounded(kLast, 0), rounded(kLast, 1));
  }
}

// `rows` lines of `bytes` (a multiple of 16, at most lanes * 16) from a stage to memory, `lanes` lanes a line; by a
// warp. Lines whose `slots`, if any, are negative are left out. Ordinary stores: bulk copies of single lines took 50
// cycles each.
__device__ inline void CopyStaged(unsigned char* to, std::int64_t pitch, std::uint32_t from, int rows, int bytes,
                                  int lanes, const std::int32_t* slots) {
  const int lane = threadIdx.x % 32, chunk = lane % lanes * 16;
  if (chunk >= bytes) return;
  constexpr int kAtOnce = 4;
  const int stride = 32 / lanes;
  for (int first = lane / lanes; first < rows; first += kAtOnce * stride) {
    uint4 line[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * stride < rows) line[i] = LoadShared(from + (first + i * stride) * kStagedPitch + chunk);
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int r = first + i * stride;
      if (r < rows && (slots == nullptr || slots[r] >= 0)) *reinterpret_cast<uint4*>(to + r * pitch + chunk) = line[i];
    }
  }
}

// The first product's results for e4m3: 128 features of each row become a line of codes and its scale; by a warp.
__device__ inline void QuantiseStaged(const FusedForwardLaunch& launch, const WorkItem& item, std::uint32_t from) {
  const int half = threadIdx.x % 32 / kQuantisingLanes, eight = threadIdx.x % kQuantisingLanes;
  const bool inside = item.column * kPackedK + eight * 8 < launch.f;
  const std::int64_t pitch = CeilDiv(launch.f, kPackedK) * kPackedK;
  auto* const codes = static_cast<unsigned char*>(launch.hidden) + item.first * pitch + item.column * kPackedK;
  float* const scales = launch.hidden_scales + item.column * launch.positions + item.first;
  constexpr int kAtOnce = 4;  // eight spill
#pragma unroll 1
  for (int first = 0; first < item.rows; first += 2 * kAtOnce) {
    uint4 values[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int r = first + 2 * i + half;
      values[i] = inside && r < item.rows ? LoadShared(from + r * kStagedPitch + eight * 16) : uint4{};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const Fp8Eight line = QuantiseEight(values[i]);
      const int r = first + 2 * i + half;
      if (r >= item.rows) continue;
      *reinterpret_cast<uint2*>(codes + r * pitch + eight * 8) = line.codes;
      if (eight == 0) scales[r] = line.scale;
    }
  }
}

// Takes staged results to memory, and tells the second product when its rows are there; by one warp.
template <FusedTileId kId>
__device__ void StoreResults(const FusedForwardLaunch& launch, const FusedShared<kId>& shared,
                             WorkRing<kRingReaders<kId>> ring) {
  constexpr FusedTile kTile = ShapeOf(kId);
  const Counters counters = {launch.counters};
  const int lane = threadIdx.x % 32;
  StageWalk<kTile.stages> walk;
  unsigned staged = 0;  // rounds, so far
  for (;;) {
    const WorkItem item = ring.Pop();
    if (item.phase == Phase::kDone) return;
    const bool up = item.phase == Phase::kUp;
    const int width = static_cast<int>(up ? launch.f : launch.d), rounds = RoundsOf<kId>(item.phase);
    const int features = up ? kTile.weights() / 2 : kTile.down_features();  // of a round
    walk.Advance(StepsOf<kId>(launch, item.phase));
    for (int round = 0; round < rounds; ++round) {
      const int first = (item.column * rounds + round) * features, bytes = min(features, width - first) * 2;
      unsigned char* const to = static_cast<unsigned char*>(up ? launch.hidden : launch.slots) +
                                (std::int64_t{item.first} * width + first) * 2;
      shared.Staged(staged).Wait(shared.StagedParity(staged));
      ++staged;
      if (kTile.fp8_rows() && up) {
        QuantiseStaged(launch, item, shared.Weights(walk.stage()));
      } else {
        CopyStaged(to, width * 2, shared.Weights(walk.stage()), item.rows, bytes, features / 8,
                   launch.one_product() && launch.sorted_slots != nullptr ? launch.sorted_slots + item.first : nullptr);
      }
      __syncwarp();
      if (lane < kMultiplyingWarps<kId>) shared.Empty(walk.stage()).Arrive();  // in the consumers' stead
      walk.Advance(1);
    }
    if (!up) continue;
    FenceAsyncGlobal();
    __threadfence();
    __syncwarp();
    if (lane == 0) atomicAdd(counters.up_done(item.token_tile), 1);
  }
}

}  // namespace expertd::cuda
