// Many rows spread over their slots on Hopper. Memory writes faster while it does not read in between, so blocks first
// fill their shared memory with rows, together most of them, and then write; rows that did not fit follow into the room
// of those that are done. Before a sort's positions are known there is time for the first part.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/launch_early.h"
#include "kernels/cuda/row_ops.cuh"
#include "kernels/cuda/row_ops_config.h"
#include "kernels/cuda/wgmma.cuh"

namespace expertd::cuda {
namespace {

constexpr int kWriters = kHeldWarps, kThreads = 32 * (kWriters + 1);
constexpr unsigned kAll = 0xffffffffu;

// The block's rows blockIdx, blockIdx + gridDim, ... and their places in shared memory.
struct Held {
  const SpreadRowsLaunch& launch;
  std::uint32_t shared;
  int row_bytes;

  __device__ std::uint32_t Place(int row) const { return shared + row % launch.held.rows * row_bytes; }
  __device__ Barrier Full(int row) const { return BarrierAt(row % launch.held.rows); }
  __device__ Barrier Empty(int row) const { return BarrierAt(launch.held.rows + row % launch.held.rows); }
  __device__ Barrier BarrierAt(int i) const { return Barrier(shared + launch.held.rows * row_bytes + i * 8); }
  __device__ std::uint32_t Round(int row) const { return row / launch.held.rows & 1; }
  __device__ std::int64_t Source(int row) const { return blockIdx.x + std::int64_t{row} * gridDim.x; }
  __device__ int rows() const { return static_cast<int>((launch.n - blockIdx.x + gridDim.x - 1) / gridDim.x); }
};

__device__ void FetchRows(const Held& held) {
  for (int row = 0; row < held.rows(); ++row) {
    held.Empty(row).Wait(held.Round(row) ^ 1);
    held.Full(row).ArriveAndExpect(held.row_bytes);
    CopyBulk(held.Place(row), static_cast<const char*>(held.launch.from) + held.Source(row) * held.row_bytes,
             held.row_bytes, held.Full(row));
  }
}

// One row to one slot, by a warp. Stores start at multiples of 128 bytes, wherever the row does.
template <typename T, int N>
__device__ void WriteSlot(const SpreadRowsLaunch& launch, std::uint32_t from, int row, float weight, std::int32_t id) {
  constexpr int kInFlight = 8;
  const int vectors = static_cast<int>(launch.d) / N, all = static_cast<int>(launch.d + launch.tail) / N;
  T* const to = static_cast<T*>(launch.to) + row * (launch.d + launch.tail);
  const int shift = static_cast<int>(reinterpret_cast<std::uintptr_t>(to) / 16 % 8);
  for (int first = static_cast<int>(threadIdx.x) % 32 - shift; first < all; first += 32 * kInFlight) {
    Pack<T, N> value[kInFlight];
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = first + 32 * i;
      if (at < 0 || at >= vectors) continue;
      const uint4 words = LoadShared(from + at * 16);
      value[i].word[0] = words.x, value[i].word[1] = words.y, value[i].word[2] = words.z, value[i].word[3] = words.w;
    }
#pragma unroll
    for (int i = 0; i < kInFlight; ++i) {
      const int at = first + 32 * i;
      if (at < 0 || at >= all) continue;
      if (launch.weights != nullptr) {
        float x[N];
        Unpack(value[i], x);
#pragma unroll
        for (float& element : x) element *= weight;
        value[i] = MakePack<T, N>(x);
      }
      if constexpr (sizeof(T) == 2) {
        if (at >= vectors) value[i] = TailPack<N>(id, at * N - launch.d);
      }
      StorePack(to + at * N, value[i]);
    }
  }
}

// All slots of the block's rows; every kWriters-th to this warp, 32 positions looked up at once.
template <typename T, int N>
__device__ void WriteRows(const Held& held) {
  const SpreadRowsLaunch& launch = held.launch;
  const int lane = threadIdx.x % 32, k = static_cast<int>(launch.k), slots = held.rows() * k;
  for (int first = static_cast<int>(threadIdx.x) / 32; first < slots; first += 32 * kWriters) {
    const int mine = first + lane * kWriters;
    int position = -1, id = -1;
    float weight = 1.0f;
    if (mine < slots) {
      const std::int64_t slot = held.Source(mine / k) * k + mine % k;
      position = launch.slot_row[slot];
      if (launch.weights != nullptr) weight = launch.weights[slot];
      if (launch.tail_ids != nullptr) id = launch.tail_ids[slot];
    }
    for (int i = 0; i < 32 && first + i * kWriters < slots; ++i) {
      const int row = (first + i * kWriters) / k, to = __shfl_sync(kAll, position, i);
      const float scale = __shfl_sync(kAll, weight, i);
      const std::int32_t tail = __shfl_sync(kAll, id, i);
      held.Full(row).Wait(held.Round(row));
      if (to >= 0) WriteSlot<T, N>(launch, held.Place(row), to, scale, tail);
      __syncwarp();
      if (lane == 0) held.Empty(row).Arrive();
    }
  }
}

// Rows of the result that the block clears where no slot names them: every kHeldOwners-th, because unnamed rows are
// neighbours.
__device__ std::int64_t OwnedRow(int index) { return std::int64_t{index} * kHeldOwners + blockIdx.x; }

// Finds the owned rows that slots name by looking through all of them; by the writers.
__device__ void FindNamed(const SpreadRowsLaunch& launch, unsigned* named) {
  constexpr int kTogether = 32, kStep = 32 * kWriters;
  const int slots = static_cast<int>(launch.n * launch.k);
  for (int first = threadIdx.x; first < slots; first += kTogether * kStep) {
    int row[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) row[i] = first + i * kStep < slots ? launch.slot_row[first + i * kStep] : -1;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const int index = row[i] / kHeldOwners;
      if (row[i] >= 0 && row[i] % kHeldOwners == blockIdx.x) atomicOr(&named[index / 32], 1u << index % 32);
    }
  }
}

template <typename T, int N>
__device__ void ClearRows(const SpreadRowsLaunch& launch, const unsigned* named) {
  if (blockIdx.x >= kHeldOwners) return;
  const int lane = threadIdx.x % 32;
  for (int first = threadIdx.x / 32; OwnedRow(first) < launch.cleared; first += 32 * kWriters) {
    const int index = first + lane * kWriters;
    bool clears = OwnedRow(index) < launch.cleared;
    if (clears && launch.counts != nullptr) {
      const Split at = Divide(OwnedRow(index), launch.max_tokens);
      clears = at.remainder >= launch.counts[at.quotient];
    } else if (clears) {
      clears = (named[index / 32] >> index % 32 & 1) == 0;
    }
    for (unsigned left = __ballot_sync(kAll, clears); left != 0; left &= left - 1) {
      ClearRow<T, N>(launch, OwnedRow(first + (__ffs(left) - 1) * kWriters));
    }
  }
}

template <typename T, int N>
__global__ void __launch_bounds__(kThreads, 1) HeldRowsKernel(const __grid_constant__ SpreadRowsLaunch launch) {
  extern __shared__ __align__(128) unsigned char memory[];
  __shared__ unsigned named[kHeldOwnedRows / 32];
  const Held held = {launch, static_cast<std::uint32_t>(__cvta_generic_to_shared(memory)),
                     static_cast<int>(launch.d * sizeof(T))};
  for (int i = threadIdx.x; i < launch.held.rows; i += kThreads) {
    held.BarrierAt(i).Init(1);
    held.BarrierAt(launch.held.rows + i).Init(static_cast<int>(launch.k));
  }
  for (int i = threadIdx.x; i < kHeldOwnedRows / 32; i += kThreads) named[i] = 0;
  FenceBarriers();
  __syncthreads();
  if (threadIdx.x >= 32 * kWriters) {
    if (threadIdx.x == 32 * kWriters) FetchRows(held);
    return;
  }
  WaitForPrevious();
  if (launch.cleared > 0 && launch.counts == nullptr) FindNamed(launch, named);
  WriteRows<T, N>(held);
  if (launch.cleared == 0) return;
  SyncSome<1, 32 * kWriters>();
  ClearRows<T, N>(launch, named);
}

}  // namespace

int LaunchHeldRows(const SpreadRowsLaunch& launch, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const auto run = [&]<typename T, int N>() -> int {
    const auto kernel = HeldRowsKernel<T, N>;
    const int shared = HeldSharedBytes(launch.held.rows, launch.d * sizeof(T));
    const int error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared);
    if (error != cudaSuccess) return error;
    const auto blocks = static_cast<unsigned>(launch.held.blocks);
    if (launch.sorted) return LaunchEarly(kernel, blocks, kThreads, shared, stream, launch);
    kernel<<<blocks, kThreads, shared, stream>>>(launch);
    return cudaGetLastError();
  };
  return launch.element == Element::kBF16 ? run.template operator()<bf16, 8>() : run.template operator()<float, 4>();
}

}  // namespace expertd::cuda
