// Tensor maps for the tensor memory accelerator, for .cu files: bf16 or bytes, lines of 128 bytes in shared memory.
#pragma once

#include <cuda.h>
#include <cuda_runtime.h>

#include <array>
#include <cstdint>

namespace expertd::cuda {

// cuTensorMapEncodeTiled, looked up by name, so that nothing links with the driver; null where there is none.
inline void* TensorMapEncoder() {
  static void* const encode = [] {
    void* entry = nullptr;
    cudaDriverEntryPointQueryResult found;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault, &found);
    return error == cudaSuccess && found == cudaDriverEntryPointSuccess ? entry : nullptr;
  }();
  return encode;
}

// A map of bf16 elements: sizes and box innermost first, pitches in bytes (of all dimensions but the innermost). The
// box's innermost line is 128 bytes and arrives swizzled; what lies outside arrives as zeros. Answers a cudaError_t.
template <int kDimensions>
int MakeTensorMap(const void* data, const std::array<std::uint64_t, kDimensions>& sizes,
                  const std::array<std::uint64_t, kDimensions - 1>& pitches,
                  const std::array<std::uint32_t, kDimensions>& box, CUtensorMap& map) {
  void* const encode = TensorMapEncoder();
  if (encode == nullptr) return cudaErrorNotSupported;
  cuuint64_t size[kDimensions], pitch[kDimensions - 1];
  cuuint32_t extent[kDimensions], one[kDimensions];
  for (int i = 0; i < kDimensions; ++i) {
    size[i] = sizes[i], extent[i] = box[i], one[i] = 1;
    if (i + 1 < kDimensions) pitch[i] = pitches[i];
  }
  const CUresult result = reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(encode)(
      &map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, kDimensions, const_cast<void*>(data), size, pitch, extent, one,
      CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
      CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? cudaSuccess : cudaErrorInvalidValue;
}

}  // namespace expertd::cuda
