// The catalogue of kernels/ops.h on CUDA devices, sm_80 and newer.
//
// All pointers are device pointers of the calling thread's current device. Every op checks its arguments, chooses a
// configuration by plain arithmetic (kernels/cuda/*_config.h) and enqueues on `stream`; it neither allocates nor waits,
// so all of them can be captured in a graph. Results are deterministic, and a row's result depends on no other row.
// Index arrays are not checked: a value outside its contract is a caller's error that may read or write anywhere.
//
// Errors: InvalidArgument as kernels/ops_check.h says, and for a workspace that is too small; Internal with CUDA's
// name for the error when a launch fails.
//
// Ops that need scratch memory take a Workspace and have a size query, which depends on the sizes in the arguments
// only (pointers may be null) and grows with them: what serves a capacity serves every smaller batch.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/ops.h"

namespace expertd::cuda {

// A cudaStream_t that outlives the call; null is the legacy default stream. Explicit: there is no ambient stream.
struct Stream {
  void* handle = nullptr;
};

// Device memory, 256-byte aligned, the op's own until its work on the stream is done.
struct Workspace {
  void* data = nullptr;
  std::int64_t bytes = 0;
};

absl::Status ActivationForward(const ActivationForwardArgs& args, Stream stream);
absl::Status ActivationBackward(const ActivationBackwardArgs& args, Stream stream);

// E <= 512 and at most 32 groups: one warp a row. Beyond: one block a row.
absl::Status FusedTopkRouting(const FusedTopkRoutingArgs& args, Stream stream);

absl::Status MoeAlignBlockSize(const MoeAlignBlockSizeArgs& args, Workspace workspace, Stream stream);
std::int64_t WorkspaceBytes(const MoeAlignBlockSizeArgs& args);

absl::Status FusedRoutingScatter(const FusedRoutingScatterArgs& args, Workspace workspace, Stream stream);
std::int64_t WorkspaceBytes(const FusedRoutingScatterArgs& args);

absl::Status FusedGatherReduce(const FusedGatherReduceArgs& args, Stream stream);

absl::Status FusedWeightedScatter(const FusedWeightedScatterArgs& args, Workspace workspace, Stream stream);
std::int64_t WorkspaceBytes(const FusedWeightedScatterArgs& args);

absl::Status FusedRoutingWeightGrad(const FusedRoutingWeightGradArgs& args, Stream stream);

absl::Status FusedDispatchPack(const FusedDispatchPackArgs& args, Workspace workspace, Stream stream);
std::int64_t WorkspaceBytes(const FusedDispatchPackArgs& args);

// bf16 with `in` a multiple of 8 runs on the tensor cores (on Hopper by the fused kernel, where both sizes are
// multiples of 64); f32 and odd sizes on plain f32 arithmetic. Which is fixed by device, dtype and shape, and each adds
// along `in` in one order whatever its tiles are, so that the bits of a row do not depend on `positions`.
absl::Status MoeGroupedGemm(const MoeGroupedGemmArgs& args, Stream stream);

// The sorted composition: align -> grouped GEMM over gathered rows -> activation -> grouped GEMM -> gather_reduce.
absl::Status FusedMoeForward(const FusedMoeForwardArgs& args, Workspace workspace, Stream stream);
std::int64_t WorkspaceBytes(const FusedMoeForwardArgs& args);

// bf16 with `in` and `out_features` multiples of 8 runs on the tensor cores; otherwise plain f32 arithmetic. Positions
// are added in order.
absl::Status MoeWeightGrad(const MoeWeightGradArgs& args, Stream stream);

}  // namespace expertd::cuda
