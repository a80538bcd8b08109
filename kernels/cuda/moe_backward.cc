// Slots sorted by expert are positions [0, S), as in fused_moe_forward.cc. Rows that products and weight gradients need
// by position are spread there; everything else is found through the maps. Positions past the held slots hold nothing
// and are read by nobody.
#include "kernels/cuda/moe_backward.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/input_grad.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {
namespace {

using Args = FusedMoeForwardArgs;

std::int64_t Slots(const Args& args) { return args.n * args.k; }

// Takes rows of `width` elements for every slot.
std::byte* TakeRows(const Args& args, std::int64_t width, Scratch& scratch) {
  return scratch.Take<std::byte>(Slots(args) * width * SizeOf(ElementOf(args.dtype)));
}

struct Saved {
  std::int32_t* offsets = nullptr;       // [E + 1]
  std::int32_t* sorted_slots = nullptr;  // [S]
  std::int32_t* positions = nullptr;     // [S]
  std::byte* gate_up = nullptr;          // [S, 2F]
};
Saved TakeSaved(const Args& args, Scratch& scratch) {
  return {.offsets = scratch.Take<std::int32_t>(args.e + 1),
          .sorted_slots = scratch.Take<std::int32_t>(Slots(args)),
          .positions = scratch.Take<std::int32_t>(Slots(args)),
          .gate_up = TakeRows(args, 2 * args.f, scratch)};
}

// What comes after the first product: saved, or in the workspace of both when it is computed again.
struct Activations {
  std::byte* hidden = nullptr;      // [S, F]
  std::byte* expert_out = nullptr;  // [S, D]
};
Activations TakeActivations(const Args& args, Scratch& scratch) {
  return {.hidden = TakeRows(args, args.f, scratch), .expert_out = TakeRows(args, args.d, scratch)};
}

struct ForwardPlan {
  Saved saved;
  Activations activations;
  ExpertSortLaunch sort;
  std::int32_t* counts = nullptr;  // [E]
  std::byte* scaled = nullptr;     // [S, D]  weight_on_input only: rows times weights, by position
};
ForwardPlan PlanForward(const Args& args, Recompute recompute, Scratch& saved, Scratch& scratch) {
  ForwardPlan plan = {.saved = TakeSaved(args, saved)};
  plan.activations = TakeActivations(args, recompute == Recompute::kNothing ? saved : scratch);
  plan.sort = PlanSort(Slots(args), args.e, scratch);
  plan.counts = scratch.Take<std::int32_t>(args.e);
  if (args.weight_on_input) plan.scaled = TakeRows(args, args.d, scratch);
  return plan;
}

struct BackwardPlan {
  Saved saved;
  Activations activations;
  std::byte* x = nullptr;            // [S, D]   the experts' inputs, by position
  std::byte* grad_expert = nullptr;  // [S, D]   of the experts' outputs; later of their inputs
  std::byte* grad_hidden = nullptr;  // [S, F]
  std::byte* grad_both = nullptr;    // [S, 2F]
  std::byte* transposed = nullptr;   // either weight array, where the device wants it transposed
};

InputGrad DownGrad(const MoeBackwardArgs& args, const BackwardPlan& plan) {
  const Args& f = args.forward;
  return {.positions = Slots(f),
          .experts = f.e,
          .in = f.f,
          .out_features = f.d,
          .element = ElementOf(f.dtype),
          .grad_out = plan.grad_expert,
          .w = f.down,
          .offsets = plan.saved.offsets,
          .grad_x = plan.grad_hidden};
}
InputGrad UpGrad(const MoeBackwardArgs& args, const BackwardPlan& plan) {
  const Args& f = args.forward;
  return {.positions = Slots(f),
          .experts = f.e,
          .in = f.d,
          .out_features = 2 * f.f,
          .element = ElementOf(f.dtype),
          .grad_out = plan.grad_both,
          .w = f.gate_up,
          .offsets = plan.saved.offsets,
          .grad_x = plan.grad_expert};
}

BackwardPlan PlanBackward(const MoeBackwardArgs& args, Scratch& saved, Scratch& scratch) {
  const Args& f = args.forward;
  BackwardPlan plan = {.saved = TakeSaved(f, saved)};
  plan.activations = TakeActivations(f, args.recompute == Recompute::kNothing ? saved : scratch);
  plan.x = TakeRows(f, f.d, scratch);
  plan.grad_expert = TakeRows(f, f.d, scratch);
  plan.grad_hidden = TakeRows(f, f.f, scratch);
  plan.grad_both = TakeRows(f, 2 * f.f, scratch);
  const std::int64_t elements = std::max(InputGradScratch(DownGrad(args, plan)), InputGradScratch(UpGrad(args, plan)));
  plan.transposed = scratch.Take<std::byte>(elements * SizeOf(ElementOf(f.dtype)));
  return plan;
}

// Row n of `from` to the positions of its slots, times the weights if there are any.
absl::Status ToPositions(const Args& args, const Saved& saved, const void* from, const float* weights, void* to,
                         Stream stream) {
  const Element element = ElementOf(args.dtype);
  const SpreadRowsLaunch spread = {.n = args.n,
                                   .d = args.d,
                                   .k = args.k,
                                   .element = element,
                                   .vectorised = args.d % VectorElements(element) == 0 && Aligned16({from, to}),
                                   .from = from,
                                   .slot_row = saved.positions,
                                   .weights = weights,
                                   .to = to};
  return FromCuda(LaunchSpreadRows(spread, stream.handle), "moe: rows by position");
}

absl::Status Up(const Args& args, const ForwardPlan& plan, Stream stream) {
  return EnqueueGroupedGemm({.positions = Slots(args),
                             .experts = args.e,
                             .in = args.d,
                             .out_features = 2 * args.f,
                             .element = ElementOf(args.dtype),
                             .x = args.weight_on_input ? plan.scaled : args.rows,
                             .gather = args.weight_on_input ? nullptr : plan.saved.sorted_slots,
                             .rows_divisor = args.weight_on_input ? 1 : static_cast<int>(args.k),
                             .offsets = plan.saved.offsets,
                             .w = args.gate_up,
                             .out = plan.saved.gate_up},
                            stream);
}

absl::Status Activate(const Args& args, const Saved& saved, const Activations& to, Stream stream) {
  return EnqueueActivation({.m = Slots(args),
                            .f = args.f,
                            .activation = args.activation,
                            .limit = args.limit,
                            .alpha = args.alpha,
                            .dtype = args.dtype,
                            .in = saved.gate_up,
                            .out = to.hidden},
                           saved.offsets + args.e, stream);
}

absl::Status Down(const Args& args, const Saved& saved, const Activations& to, Stream stream) {
  return EnqueueGroupedGemm({.positions = Slots(args),
                             .experts = args.e,
                             .in = args.f,
                             .out_features = args.d,
                             .element = ElementOf(args.dtype),
                             .x = to.hidden,
                             .offsets = saved.offsets,
                             .w = args.down,
                             .out = to.expert_out},
                            stream);
}

absl::Status ActivationGrad(const Args& args, const BackwardPlan& plan, Stream stream) {
  return EnqueueActivationGrad({.m = Slots(args),
                                .f = args.f,
                                .activation = args.activation,
                                .limit = args.limit,
                                .alpha = args.alpha,
                                .dtype = args.dtype,
                                .grad_out = plan.grad_hidden,
                                .in = plan.saved.gate_up,
                                .grad_in = plan.grad_both},
                               plan.saved.offsets + args.e, stream);
}

absl::Status WeightGrad(const MoeBackwardArgs& args, const BackwardPlan& plan, std::int64_t in,
                        std::int64_t out_features, const void* grad_out, const void* x, void* grad_w, Stream stream) {
  if (grad_w == nullptr) return absl::OkStatus();
  return MoeWeightGrad({.positions = Slots(args.forward),
                        .e = args.forward.e,
                        .in = in,
                        .out_features = out_features,
                        .dtype = args.forward.dtype,
                        .w_dtype = args.w_dtype,
                        .grad_out = grad_out,
                        .x = x,
                        .offsets = plan.saved.offsets,
                        .grad_w = grad_w},
                       stream);
}

// The weight stands on the experts' outputs or on their inputs: its gradient is a dot product there.
absl::Status RoutingGrad(const MoeBackwardArgs& args, const BackwardPlan& plan, Stream stream) {
  const Args& f = args.forward;
  return FusedRoutingWeightGrad({.n = f.n,
                                 .d = f.d,
                                 .k = f.k,
                                 .r = Slots(f),
                                 .dtype = f.dtype,
                                 .expert_out = f.weight_on_input ? plan.grad_expert : plan.activations.expert_out,
                                 .grad_out = f.weight_on_input ? f.rows : args.grad_out,
                                 .slot_row = plan.saved.positions,
                                 .grad_weights = args.grad_weights},
                                stream);
}

absl::Status Check(const MoeBackwardArgs& args) {
  Args forward = args.forward;
  forward.out = args.grad_rows;  // not the forward's: that is gone
  if (absl::Status status = expertd::Check(forward); !status.ok()) return status;
  if (args.w_dtype != DType::kBF16 && args.w_dtype != DType::kF32) {
    return absl::InvalidArgumentError(absl::StrCat("w_dtype: ", DTypeName(args.w_dtype), " is neither bf16 nor f32"));
  }
  if (forward.n > 0 && (args.grad_out == nullptr || args.grad_rows == nullptr || args.grad_weights == nullptr)) {
    return absl::InvalidArgumentError("grad_out, grad_rows, grad_weights: one is null");
  }
  return absl::OkStatus();
}

}  // namespace

std::int64_t SavedBytes(const FusedMoeForwardArgs& args, Recompute recompute) {
  Scratch saved, scratch;
  PlanForward(args, recompute, saved, scratch);
  return saved.used();
}

std::int64_t MoeForwardWorkspaceBytes(const FusedMoeForwardArgs& args, Recompute recompute) {
  Scratch saved, scratch;
  PlanForward(args, recompute, saved, scratch);
  return scratch.used();
}

absl::Status MoeForward(const FusedMoeForwardArgs& args, Recompute recompute, Workspace saved_memory,
                        Workspace workspace, Stream stream) {
  if (absl::Status status = expertd::Check(args); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(saved_memory, SavedBytes(args, recompute)); !status.ok()) return status;
  const std::int64_t bytes = MoeForwardWorkspaceBytes(args, recompute);
  if (absl::Status status = CheckWorkspace(workspace, bytes); !status.ok()) return status;
  Scratch saved(saved_memory.data), scratch(workspace.data);
  ForwardPlan plan = PlanForward(args, recompute, saved, scratch);
  plan.sort.ids = args.ids;
  plan.sort.counts = plan.counts;
  plan.sort.offsets = plan.saved.offsets;
  plan.sort.sorted_slots = plan.saved.sorted_slots;
  plan.sort.positions = plan.saved.positions;
  absl::Status status = FromCuda(LaunchExpertSort(plan.sort, stream.handle), "moe_forward: align");
  if (!status.ok() || args.n == 0) return status;
  if (args.weight_on_input) status = ToPositions(args, plan.saved, args.rows, args.weights, plan.scaled, stream);
  if (status.ok()) status = Up(args, plan, stream);
  if (status.ok()) status = Activate(args, plan.saved, plan.activations, stream);
  if (status.ok()) status = Down(args, plan.saved, plan.activations, stream);
  if (!status.ok()) return status;
  return FusedGatherReduce({.n = args.n,
                            .d = args.d,
                            .k = args.k,
                            .r = Slots(args),
                            .dtype = args.dtype,
                            .out_dtype = args.out_dtype,
                            .expert_out = plan.activations.expert_out,
                            .slot_row = plan.saved.positions,
                            .weights = args.weight_on_input ? nullptr : args.weights,
                            .out = args.out},
                           stream);
}

std::int64_t WorkspaceBytes(const MoeBackwardArgs& args) {
  Scratch saved, scratch;
  PlanBackward(args, saved, scratch);
  return scratch.used();
}

absl::Status MoeBackward(const MoeBackwardArgs& args, Workspace saved_memory, Workspace workspace, Stream stream) {
  const Args& f = args.forward;
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(saved_memory, SavedBytes(f, args.recompute)); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch saved_scratch(saved_memory.data), scratch(workspace.data);
  const BackwardPlan plan = PlanBackward(args, saved_scratch, scratch);
  const Saved& saved = plan.saved;
  const float* const on_output = f.weight_on_input ? nullptr : f.weights;
  const float* const on_input = f.weight_on_input ? f.weights : nullptr;

  absl::Status status;
  const auto then = [&status](const auto& step) {
    if (status.ok()) status = step();
  };
  if (f.n > 0) {
    if (args.recompute == Recompute::kActivations) {
      then([&] { return Activate(f, saved, plan.activations, stream); });
      if (!f.weight_on_input) then([&] { return Down(f, saved, plan.activations, stream); });
    }
    then([&] { return ToPositions(f, saved, args.grad_out, on_output, plan.grad_expert, stream); });
    if (args.grad_gate_up != nullptr) {
      then([&] { return ToPositions(f, saved, f.rows, on_input, plan.x, stream); });
    }
    then([&] { return EnqueueInputGrad(DownGrad(args, plan), plan.transposed, stream); });
    then([&] { return ActivationGrad(f, plan, stream); });
  }
  then([&] {
    return WeightGrad(args, plan, f.f, f.d, plan.grad_expert, plan.activations.hidden, args.grad_down, stream);
  });
  then([&] { return WeightGrad(args, plan, f.d, 2 * f.f, plan.grad_both, plan.x, args.grad_gate_up, stream); });
  if (f.n == 0) return status;
  then([&] { return EnqueueInputGrad(UpGrad(args, plan), plan.transposed, stream); });
  then([&] { return RoutingGrad(args, plan, stream); });
  then([&] {
    return FusedGatherReduce({.n = f.n,
                              .d = f.d,
                              .k = f.k,
                              .r = Slots(f),
                              .dtype = f.dtype,
                              .out_dtype = f.dtype,
                              .expert_out = plan.grad_expert,
                              .slot_row = saved.positions,
                              .weights = on_input,
                              .out = args.grad_rows},
                             stream);
  });
  return status;
}

}  // namespace expertd::cuda
