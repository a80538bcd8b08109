// A grouped GEMM described for the device but not yet configured: what moe_grouped_gemm and the composed ops share.
#pragma once

#include "absl/status/status.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/ops.h"

namespace expertd::cuda {

// Chooses kernel, tile and grid for the current device and enqueues; `launch` has everything else. InvalidArgument when
// rows for the tensor cores are not 16-byte aligned.
absl::Status EnqueueGroupedGemm(GroupedGemmLaunch launch, Stream stream);

}  // namespace expertd::cuda
