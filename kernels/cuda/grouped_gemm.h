// Device side of moe_grouped_gemm, for plain callers. Both enqueue one kernel on `stream` (a cudaStream_t) and answer a
// cudaError_t.
#pragma once

#include <cstdint>

#include "kernels/cuda/grouped_gemm_config.h"
#include "kernels/cuda/hopper/packed_weights.h"

namespace expertd::cuda {

struct GroupedGemmLaunch {
  std::int64_t positions = 0, experts = 0, in = 0, out_features = 0;
  Element element = Element::kBF16;           // of x, and of out
  bool wide_out = false;                      // out is f32 all the same
  WeightCode weights = WeightCode::kElement;  // of w
  GemmTile tile = GemmTile::k64x8;
  int blocks = 1;
  const void* x = nullptr;                // [*, in]
  const std::int32_t* gather = nullptr;   // [positions] or null
  int rows_divisor = 1;                   // the x row of a position is gather[position] / rows_divisor
  const std::int32_t* offsets = nullptr;  // [experts + 1]
  const void* w = nullptr;                // [experts, out_features, in]
  const void* scales = nullptr;           // of w, as WeightCode says, for each expert; null when w is packed
  Packing packing = Packing::kNone;       // only the plain kernel reads packed weights
  void* out = nullptr;                    // [positions, out_features]
};

// bf16 rows; bf16, fp8 or mxfp4 weights; `in` a multiple of 8, all pointers 16-byte aligned.
int LaunchGroupedGemm(const GroupedGemmLaunch& launch, void* stream);
// Any shape, rows in bf16 or f32, any weights.
int LaunchGroupedGemmPlain(const GroupedGemmLaunch& launch, void* stream);

}  // namespace expertd::cuda
