// The catalogue of kernels/ops.h in double: plain loops, slow and obvious. The oracle of every later test.
// Host pointers. Each returns InvalidArgument where the contract says so. Inputs are read in their dtype, everything
// between is double, outputs round once to their dtype.
#pragma once

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace expertd::reference {

absl::Status ActivationForward(const ActivationForwardArgs& args);
absl::Status ActivationBackward(const ActivationBackwardArgs& args);
absl::Status FusedTopkRouting(const FusedTopkRoutingArgs& args);
absl::Status MoeAlignBlockSize(const MoeAlignBlockSizeArgs& args);
absl::Status FusedRoutingScatter(const FusedRoutingScatterArgs& args);
absl::Status FusedGatherReduce(const FusedGatherReduceArgs& args);
absl::Status FusedWeightedScatter(const FusedWeightedScatterArgs& args);
absl::Status FusedRoutingWeightGrad(const FusedRoutingWeightGradArgs& args);
absl::Status FusedDispatchPack(const FusedDispatchPackArgs& args);
absl::Status MoeGroupedGemm(const MoeGroupedGemmArgs& args);
absl::Status FusedMoeForward(const FusedMoeForwardArgs& args);
absl::Status MoeWeightGrad(const MoeWeightGradArgs& args);

}  // namespace expertd::reference
