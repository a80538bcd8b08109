// Bound by memory: one thread takes one 16-byte vector of a row.
#include <cuda_runtime.h>

#include "kernels/cuda/engine/batched_rows.h"
#include "kernels/cuda/row_ops.cuh"

namespace expertd::cuda {
namespace {

// Where a vector stands: which row of the batched layout, which column, and its sorted position, -1 for padding.
struct Place {
  std::int64_t row, column, position;
};
template <int N>
__device__ Place PlaceOf(const BatchedRowsLaunch& part, std::int64_t index) {
  const Split vector = Divide(index, part.d / N), at = Divide(vector.quotient, part.rows);
  const std::int64_t position = part.offsets[at.quotient] + part.first + at.remainder;
  return {vector.quotient, vector.remainder * N, position < part.offsets[at.quotient + 1] ? position : -1};
}

template <typename T, int N>
__global__ void __launch_bounds__(kRowThreads)
    ToBatchedKernel(const __grid_constant__ ToBatchedLaunch launch, std::int64_t vectors) {
  const BatchedRowsLaunch& part = launch.part;
  if (blockIdx.x == 0) {
    for (std::int64_t e = threadIdx.x; e <= part.experts; e += kRowThreads) {
      launch.batch_offsets[e] = static_cast<std::int32_t>(e * part.rows);
    }
  }
  const std::int64_t index = std::int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (index >= vectors) return;
  const Place place = PlaceOf<N>(part, index);
  Pack<T, N> value = {};
  if (place.position >= 0) {
    const std::int64_t row = launch.sorted_slots[place.position] / launch.rows_divisor;
    value = LoadPack<T, N>(static_cast<const T*>(launch.x) + row * part.d + place.column);
  }
  StorePack(static_cast<T*>(launch.batched) + place.row * part.d + place.column, value);
}

template <typename T, int N>
__global__ void __launch_bounds__(kRowThreads)
    FromBatchedKernel(const __grid_constant__ FromBatchedLaunch launch, std::int64_t vectors) {
  const std::int64_t d = launch.part.d, index = std::int64_t{blockIdx.x} * kRowThreads + threadIdx.x;
  if (index >= vectors) return;
  const Place place = PlaceOf<N>(launch.part, index);
  if (place.position < 0) return;
  StorePack(static_cast<T*>(launch.sorted) + place.position * d + place.column,
            LoadPack<T, N>(static_cast<const T*>(launch.batched) + place.row * d + place.column));
}

bool Vectorised(const BatchedRowsLaunch& part) { return part.d % VectorElements(part.element) == 0; }

}  // namespace

int LaunchToBatched(const ToBatchedLaunch& launch, void* stream) {
  const BatchedRowsLaunch& part = launch.part;
  return DispatchRows(part.element, Vectorised(part), [&]<typename T, int N>() -> int {
    const std::int64_t vectors = part.experts * part.rows * (part.d / N);
    ToBatchedKernel<T, N>
        <<<RowBlocks(vectors, kRowThreads), kRowThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch, vectors);
    return cudaGetLastError();
  });
}

int LaunchFromBatched(const FromBatchedLaunch& launch, void* stream) {
  const BatchedRowsLaunch& part = launch.part;
  return DispatchRows(part.element, Vectorised(part), [&]<typename T, int N>() -> int {
    const std::int64_t vectors = part.experts * part.rows * (part.d / N);
    FromBatchedKernel<T, N>
        <<<RowBlocks(vectors, kRowThreads), kRowThreads, 0, static_cast<cudaStream_t>(stream)>>>(launch, vectors);
    return cudaGetLastError();
  });
}

}  // namespace expertd::cuda
