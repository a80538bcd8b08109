// A grouped GEMM described for the device but not yet configured: what moe_grouped_gemm and the composed ops share.
#pragma once

#include "absl/status/status.h"
#include "kernels/cuda/grouped_gemm.h"
#include "kernels/cuda/hopper/fused_forward.h"
#include "kernels/cuda/ops.h"

namespace expertd::cuda {

// Chooses kernel, tile and grid for the current device and enqueues; `launch` has everything else. InvalidArgument when
// rows for the tensor cores are not 16-byte aligned.
absl::Status EnqueueGroupedGemm(GroupedGemmLaunch launch, Stream stream);

// The ops activation_forward and activation_backward for the rows of held slots: how many is read on the device. Rows
// past them are neither read nor written.
absl::Status EnqueueActivation(const ActivationForwardArgs& args, const std::int32_t* held, Stream stream);
absl::Status EnqueueActivationGrad(const ActivationBackwardArgs& args, const std::int32_t* held, Stream stream);

// Hopper's fused kernel; UsesFused() of the current device and the layer must hold. Chooses tile and grid and enqueues;
// `launch` has everything else, and its counters are cleared by what was enqueued before.
absl::Status EnqueueFusedForward(FusedForwardLaunch launch, Stream stream);
// A grouped GEMM by the same kernel on `product.blocks` multiprocessors, where UsesHopperProduct() holds and pointers
// are 16-byte aligned.
absl::Status EnqueueHopperProduct(const GroupedGemmLaunch& product, Stream stream);
// Counters for the tile that it chooses.
std::int64_t FusedCounters(const FusedWork& work);

}  // namespace expertd::cuda
