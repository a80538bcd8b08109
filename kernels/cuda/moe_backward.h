// Training: the forward of the sorted composition that keeps what backward needs, and backward; the router's gradient.
// Contracts as in ops.h. Rows and weights bf16 or f32; everything the two share lies in one buffer of the caller.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/layer_spec.h"

namespace expertd::cuda {

// What backward computes again instead of finding it saved.
enum class Recompute : std::uint8_t {
  kNothing,      // saved: maps, the first product [S, 2F], the activation [S, F], the experts' outputs [S, D]
  kActivations,  // saved: maps and the first product; the rest costs the activation and the second product again
};

// Bytes that MoeForward fills and MoeBackward reads.
std::int64_t SavedBytes(const FusedMoeForwardArgs& args, Recompute recompute);

// FusedMoeForward, the same bits, that also fills `saved`.
absl::Status MoeForward(const FusedMoeForwardArgs& args, Recompute recompute, Workspace saved, Workspace workspace,
                        Stream stream);
std::int64_t MoeForwardWorkspaceBytes(const FusedMoeForwardArgs& args, Recompute recompute);

// Gradients of sum(grad_out * out), `forward` and `saved` being MoeForward's.
//   grad_out      [N, D] dtype
//   grad_rows     [N, D] dtype       through the experts only: the router's part is FusedRouterGrad's
//   grad_weights  [N, K] f32         0 for slots that are not held
//   grad_gate_up  [E, 2F, D] w_dtype   null: not wanted (frozen experts)
//   grad_down     [E, D, F]  w_dtype   null: not wanted
struct MoeBackwardArgs {
  FusedMoeForwardArgs forward;  // `out` is not used
  Recompute recompute = Recompute::kNothing;
  DType w_dtype = DType::kF32;
  const void* grad_out = nullptr;
  void* grad_rows = nullptr;
  float* grad_weights = nullptr;
  void* grad_gate_up = nullptr;
  void* grad_down = nullptr;
};
absl::Status MoeBackward(const MoeBackwardArgs& args, Workspace saved, Workspace workspace, Stream stream);
// For the current device: where it has no products with transposed weights (all but Hopper, f32, odd sizes), the larger
// of the two weight arrays is transposed into the workspace.
std::int64_t WorkspaceBytes(const MoeBackwardArgs& args);

// Gradient of the routing weights with respect to the logits; choosing has none.
//   logits        [N, E] f32   as FusedTopkRouting saw them
//   ids           [N, K] i32   as it chose them, all in [0, E)
//   grad_weights  [N, K] f32
//   grad_logits   [N, E] f32
// InvalidArgument for the sparse mixer, which has no gradient here.
struct RouterGradArgs {
  std::int64_t n = 0, e = 0, k = 0;
  RoutingRule rule;
  const float* logits = nullptr;
  const std::int32_t* ids = nullptr;
  const float* grad_weights = nullptr;
  float* grad_logits = nullptr;
};
absl::Status FusedRouterGrad(const RouterGradArgs& args, Stream stream);

}  // namespace expertd::cuda
