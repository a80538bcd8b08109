#include "kernels/cuda/batched_moe_forward.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/host.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {
namespace {

struct BatchedPlan {
  FusedRoutingScatterArgs scatter;  // all but rows and ids
  FusedWeightedScatterArgs scale;   // weight_on_input only: the rows again, times their weights
  std::byte* gate_up = nullptr;     // [E, max_tokens, 2F]
  std::byte* hidden = nullptr;      // [E, max_tokens, F]
  std::byte* expert_out = nullptr;  // [E, max_tokens, D]
  std::byte* cublas = nullptr;
  std::byte* shared = nullptr;  // one op after another
  std::int64_t shared_bytes = 0;
};

BatchedPlan Plan(const BatchedMoeForwardArgs& args, Scratch& scratch) {
  const FusedMoeForwardArgs& f = args.forward;
  const std::int64_t positions = f.e * args.max_tokens, size = SizeOf(ElementOf(f.dtype));
  BatchedPlan plan;
  plan.scatter = {.n = f.n, .d = f.d, .e = f.e, .k = f.k, .max_tokens = args.max_tokens, .dtype = f.dtype};
  plan.scatter.batched = scratch.Take<std::byte>(positions * f.d * size);
  plan.scatter.slot_pos = scratch.Take<std::int32_t>(f.n * f.k);
  plan.scatter.counts = scratch.Take<std::int32_t>(f.e);
  plan.scatter.overflow = args.overflow;
  plan.scale = {.n = f.n, .d = f.d, .k = f.k, .r = positions, .dtype = f.dtype};
  plan.scale.slot_row = plan.scatter.slot_pos, plan.scale.grad_expert = plan.scatter.batched;
  plan.gate_up = scratch.Take<std::byte>(positions * 2 * f.f * size);
  plan.hidden = scratch.Take<std::byte>(positions * f.f * size);
  plan.expert_out = scratch.Take<std::byte>(positions * f.d * size);
  plan.cublas = scratch.Take<std::byte>(Cublas::kWorkspaceBytes);
  plan.shared_bytes =
      std::max(WorkspaceBytes(plan.scatter), f.weight_on_input ? WorkspaceBytes(plan.scale) : std::int64_t{0});
  plan.shared = scratch.Take<std::byte>(plan.shared_bytes);
  return plan;
}

absl::Status Check(const BatchedMoeForwardArgs& args) {
  if (absl::Status status = expertd::Check(args.forward); !status.ok()) return status;
  if (args.max_tokens < 0 || args.max_tokens > args.forward.n) {
    return absl::InvalidArgumentError(
        absl::StrCat("max_tokens: ", args.max_tokens, " is outside 0..", args.forward.n, " (the rows)"));
  }
  if (args.overflow == nullptr) return absl::InvalidArgumentError("overflow: is null");
  return absl::OkStatus();
}

// Rows to their experts; where the weight stands on the input, a second pass over the same positions multiplies it in.
absl::Status Scatter(const FusedMoeForwardArgs& f, BatchedPlan plan, Stream stream) {
  const Workspace workspace = {plan.shared, plan.shared_bytes};
  plan.scatter.rows = f.rows, plan.scatter.ids = f.ids;
  absl::Status status = FusedRoutingScatter(plan.scatter, workspace, stream);
  if (!status.ok() || !f.weight_on_input) return status;
  plan.scale.grad_out = f.rows, plan.scale.weights = f.weights;
  return FusedWeightedScatter(plan.scale, workspace, stream);
}

}  // namespace

std::int64_t WorkspaceBytes(const BatchedMoeForwardArgs& args) {
  Scratch scratch;
  Plan(args, scratch);
  return scratch.used();
}

absl::Status BatchedMoeForward(const BatchedMoeForwardArgs& args, Cublas& cublas, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch scratch(workspace.data);
  const FusedMoeForwardArgs& f = args.forward;
  const BatchedPlan plan = Plan(args, scratch);
  const Cublas::Product up = {.experts = f.e,
                              .rows = args.max_tokens,
                              .in = f.d,
                              .out_features = 2 * f.f,
                              .element = ElementOf(f.dtype),
                              .x = plan.scatter.batched,
                              .w = f.gate_up,
                              .out = plan.gate_up};
  const Cublas::Product down = {.experts = f.e,
                                .rows = args.max_tokens,
                                .in = f.f,
                                .out_features = f.d,
                                .element = ElementOf(f.dtype),
                                .x = plan.hidden,
                                .w = f.down,
                                .out = plan.expert_out};
  absl::Status status = Scatter(f, plan, stream);
  if (!status.ok() || f.n == 0) return status;
  status = cublas.Multiply(up, plan.cublas, stream);
  if (status.ok()) {
    status = ActivationForward({.m = f.e * args.max_tokens,
                                .f = f.f,
                                .activation = f.activation,
                                .limit = f.limit,
                                .alpha = f.alpha,
                                .dtype = f.dtype,
                                .in = plan.gate_up,
                                .out = plan.hidden},
                               stream);
  }
  if (status.ok()) status = cublas.Multiply(down, plan.cublas, stream);
  if (!status.ok()) return status;
  return FusedGatherReduce({.n = f.n,
                            .d = f.d,
                            .k = f.k,
                            .r = f.e * args.max_tokens,
                            .dtype = f.dtype,
                            .out_dtype = f.out_dtype,
                            .expert_out = plan.expert_out,
                            .slot_row = plan.scatter.slot_pos,
                            .weights = f.weight_on_input ? nullptr : f.weights,
                            .out = f.out},
                           stream);
}

}  // namespace expertd::cuda
