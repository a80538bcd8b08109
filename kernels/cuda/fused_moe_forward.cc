// The sorted composition. Slots sorted by expert are positions [0, S); rows are gathered by the first product where
// they lie, and the combine reads each slot at its position, so nothing is padded and nothing is scattered.
#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/row_ops.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {
namespace {

// Everything between the caller's rows and its output, in the workspace.
struct ForwardPlan {
  ExpertSortLaunch sort;
  std::int32_t* counts = nullptr;        // [E]
  std::int32_t* offsets = nullptr;       // [E + 1]
  std::int32_t* sorted_slots = nullptr;  // [S]
  std::int32_t* positions = nullptr;     // [S]
  std::byte* scaled = nullptr;           // [S, D]   weight_on_input only: rows times weights, by slot
  std::byte* gate_up = nullptr;          // [S, 2F]
  std::byte* hidden = nullptr;           // [S, F]
  std::byte* expert_out = nullptr;       // [S, D]
};

ForwardPlan Plan(const FusedMoeForwardArgs& args, Scratch& scratch) {
  const std::int64_t slots = args.n * args.k, size = SizeOf(ElementOf(args.dtype));
  ForwardPlan plan = {.sort = PlanSort(slots, args.e, scratch)};
  plan.counts = scratch.Take<std::int32_t>(args.e);
  plan.offsets = scratch.Take<std::int32_t>(args.e + 1);
  plan.sorted_slots = scratch.Take<std::int32_t>(slots);
  plan.positions = scratch.Take<std::int32_t>(slots);
  if (args.weight_on_input) plan.scaled = scratch.Take<std::byte>(slots * args.d * size);
  plan.gate_up = scratch.Take<std::byte>(slots * 2 * args.f * size);
  plan.hidden = scratch.Take<std::byte>(slots * args.f * size);
  plan.expert_out = scratch.Take<std::byte>(slots * args.d * size);
  return plan;
}

absl::Status Sort(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  ExpertSortLaunch sort = plan.sort;
  sort.ids = args.ids;
  sort.counts = plan.counts;
  sort.offsets = plan.offsets;
  sort.sorted_slots = plan.sorted_slots;
  sort.positions = plan.positions;
  return FromCuda(LaunchExpertSort(sort, stream.handle), "fused_moe_forward: align");
}

absl::Status ScaleRows(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  const Element element = ElementOf(args.dtype);
  const SpreadRowsLaunch spread = {
      .n = args.n,
      .d = args.d,
      .k = args.k,
      .element = element,
      .vectorised = args.d % VectorElements(element) == 0 && Aligned16({args.rows, plan.scaled}),
      .from = args.rows,
      .weights = args.weights,
      .to = plan.scaled};
  return FromCuda(LaunchSpreadRows(spread, stream.handle), "fused_moe_forward: weight on input");
}

absl::Status Up(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  return EnqueueGroupedGemm({.positions = args.n * args.k,
                             .experts = args.e,
                             .in = args.d,
                             .out_features = 2 * args.f,
                             .element = ElementOf(args.dtype),
                             .x = args.weight_on_input ? plan.scaled : args.rows,
                             .gather = plan.sorted_slots,
                             .rows_divisor = args.weight_on_input ? 1 : static_cast<int>(args.k),
                             .offsets = plan.offsets,
                             .w = args.gate_up,
                             .out = plan.gate_up},
                            stream);
}

absl::Status Down(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  return EnqueueGroupedGemm({.positions = args.n * args.k,
                             .experts = args.e,
                             .in = args.f,
                             .out_features = args.d,
                             .element = ElementOf(args.dtype),
                             .x = plan.hidden,
                             .offsets = plan.offsets,
                             .w = args.down,
                             .out = plan.expert_out},
                            stream);
}

}  // namespace

std::int64_t WorkspaceBytes(const FusedMoeForwardArgs& args) {
  Scratch scratch;
  Plan(args, scratch);
  return scratch.used();
}

absl::Status FusedMoeForward(const FusedMoeForwardArgs& args, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch scratch(workspace.data);
  const ForwardPlan plan = Plan(args, scratch);
  const std::int64_t slots = args.n * args.k;

  absl::Status status = Sort(args, plan, stream);
  if (status.ok() && args.weight_on_input) status = ScaleRows(args, plan, stream);
  if (status.ok()) status = Up(args, plan, stream);
  // Positions past the held slots hold nothing; what the activation makes of them is not read.
  if (status.ok()) {
    status = ActivationForward({.m = slots,
                                .f = args.f,
                                .activation = args.activation,
                                .limit = args.limit,
                                .alpha = args.alpha,
                                .dtype = args.dtype,
                                .in = plan.gate_up,
                                .out = plan.hidden},
                               stream);
  }
  if (status.ok()) status = Down(args, plan, stream);
  if (!status.ok()) return status;
  return FusedGatherReduce({.n = args.n,
                            .d = args.d,
                            .k = args.k,
                            .r = slots,
                            .dtype = args.dtype,
                            .out_dtype = args.out_dtype,
                            .expert_out = plan.expert_out,
                            .slot_row = plan.positions,
                            .weights = args.weight_on_input ? nullptr : args.weights,
                            .out = args.out},
                           stream);
}

}  // namespace expertd::cuda
