// The batched composition, the original's design: scatter to [E, max_tokens, D] -> one cuBLAS product for all experts
// -> activation -> product -> gather_reduce.
//
// An explicit choice, never a default: cuBLAS chooses its kernels by max_tokens, so a row's bits depend on its batch.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/ops.h"

namespace expertd::cuda {

// FusedMoeForward's contract, and:
//   max_tokens  rows that each expert has room for, at most N; who routes on the host counts there, who routes on the
//               device reads the largest count back (4 bytes), or takes N
//   overflow    [1] i32   slots over max_tokens, on the device: they count as zero in `out`, and a caller that did not
//                         count must look. 0 when max_tokens is enough.
struct BatchedMoeForwardArgs {
  FusedMoeForwardArgs forward;
  std::int64_t max_tokens = 0;
  std::int32_t* overflow = nullptr;
};
absl::Status BatchedMoeForward(const BatchedMoeForwardArgs& args, Cublas& cublas, Workspace workspace, Stream stream);
std::int64_t WorkspaceBytes(const BatchedMoeForwardArgs& args);

}  // namespace expertd::cuda
