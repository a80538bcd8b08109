// What the kernels that move rows share: a vector of a row spread over its slots.
#pragma once

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/row_ops.h"

namespace expertd::cuda {

inline constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;

inline unsigned RowBlocks(std::int64_t work, std::int64_t per_block) {
  return static_cast<unsigned>(CeilDiv(work, per_block));
}

// Calls body<T, N>() for the element type, with N elements of 16 bytes or one.
template <typename Body>
int DispatchRows(Element element, bool vectorised, const Body& body) {
  if (element == Element::kBF16) {
    return vectorised ? body.template operator()<bf16, 8>() : body.template operator()<bf16, 1>();
  }
  return vectorised ? body.template operator()<float, 4>() : body.template operator()<float, 1>();
}

// Elements of a packed row's tail from `offset` on: the id's bits, then zeros.
template <int N>
__device__ inline Pack<bf16, N> TailPack(std::int32_t id, std::int64_t offset) {
  Pack<bf16, N> pack = {};
  if constexpr (N == 1) {
    pack.word[0] = static_cast<std::uint16_t>(offset < 2 ? static_cast<std::uint32_t>(id) >> 16 * offset : 0);
  } else {
    pack.word[0] = static_cast<std::uint32_t>(id);  // the tail is one access
  }
  return pack;
}

// The vector of row `n` of `from` at `column`; in the tail, nothing.
template <typename T, int N>
__device__ inline Pack<T, N> LoadSpread(const SpreadRowsLaunch& launch, std::int64_t n, std::int64_t column) {
  Pack<T, N> value = {};
  if (column < launch.d) value = LoadPack<T, N>(static_cast<const T*>(launch.from) + n * launch.d + column);
  return value;
}

// Writes it to all slots of the row: slot n * k + j goes to row row_of(j), nowhere when that is negative.
template <typename T, int N, typename RowOf>
__device__ inline void SpreadVector(const SpreadRowsLaunch& launch, std::int64_t n, std::int64_t column,
                                    const Pack<T, N>& value, const RowOf& row_of) {
  const std::int64_t pitch = launch.d + launch.tail;
  const int k = static_cast<int>(launch.k);
  T* const to = static_cast<T*>(launch.to);
#pragma unroll 4
  for (int j = 0; j < k; ++j) {
    const std::int64_t slot = n * k + j, row = row_of(j);
    if (row < 0) continue;
    Pack<T, N> result = value;
    if constexpr (sizeof(T) == 2) {
      if (column >= launch.d) result = TailPack<N>(launch.tail_ids[slot], column - launch.d);
    }
    if (launch.weights != nullptr) {  // Without weights the bits are copied, NaN payloads included.
      float x[N];
      Unpack(value, x);
#pragma unroll
      for (int i = 0; i < N; ++i) x[i] *= launch.weights[slot];
      result = MakePack<T, N>(x);
    }
    StorePack(to + row * pitch + column, result);
  }
}

// Sets row `row` of `to` to zero, by a warp.
template <typename T, int N>
__device__ inline void ClearRow(const SpreadRowsLaunch& launch, std::int64_t row) {
  const float zeros[N] = {};
  T* const to = static_cast<T*>(launch.to) + row * launch.d;
  for (std::int64_t i = (threadIdx.x % 32) * N; i < launch.d; i += 32 * N) Store(to + i, zeros);
}

}  // namespace expertd::cuda
