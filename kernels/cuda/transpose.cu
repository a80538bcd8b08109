// Transposed weights for the input gradient where products cannot take them as they are: tiles of 32 x 32 through
// shared memory, both sides in rows of a warp.
#include <cuda_runtime.h>

#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/transpose.h"

namespace expertd::cuda {
namespace {

constexpr int kTile = 32, kRowsAtOnce = 8;

template <typename T>
__global__ void __launch_bounds__(kTile* kRowsAtOnce)
    TransposeKernel(std::int64_t tiles, std::int64_t rows, std::int64_t columns, const T* __restrict__ from,
                    T* __restrict__ to) {
  __shared__ T tile[kTile][kTile + 1];
  const std::int64_t tiles_across = (columns + kTile - 1) / kTile, tiles_down = (rows + kTile - 1) / kTile;
  for (std::int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Split plane = Divide(index, tiles_across * tiles_down), at = Divide(plane.remainder, tiles_across);
    const std::int64_t row = at.quotient * kTile, column = at.remainder * kTile, base = plane.quotient * rows * columns;
    for (int i = threadIdx.y; i < kTile; i += kRowsAtOnce) {
      if (row + i < rows && column + threadIdx.x < columns) {
        tile[i][threadIdx.x] = from[base + (row + i) * columns + column + threadIdx.x];
      }
    }
    __syncthreads();
    for (int i = threadIdx.y; i < kTile; i += kRowsAtOnce) {
      if (column + i < columns && row + threadIdx.x < rows) {
        to[base + (column + i) * rows + row + threadIdx.x] = tile[threadIdx.x][i];
      }
    }
    __syncthreads();
  }
}

}  // namespace

int LaunchTranspose(Element element, std::int64_t planes, std::int64_t rows, std::int64_t columns, const void* from,
                    void* to, void* stream_handle) {
  const auto stream = static_cast<cudaStream_t>(stream_handle);
  const std::int64_t tiles = planes * CeilDiv(rows, kTile) * CeilDiv(columns, kTile);
  const auto blocks = static_cast<unsigned>(tiles < 65536 ? tiles : 65536);
  const dim3 threads(kTile, kRowsAtOnce);
  if (element == Element::kBF16) {
    TransposeKernel<<<blocks, threads, 0, stream>>>(tiles, rows, columns, static_cast<const std::uint16_t*>(from),
                                                    static_cast<std::uint16_t*>(to));
  } else {
    TransposeKernel<<<blocks, threads, 0, stream>>>(tiles, rows, columns, static_cast<const float*>(from),
                                                    static_cast<float*>(to));
  }
  return cudaGetLastError();
}

}  // namespace expertd::cuda
