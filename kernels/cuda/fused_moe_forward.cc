// Slots sorted by expert are positions [0, S); rows are gathered by the first product where they lie, and the combine
// reads each slot at its position, so nothing is padded and nothing is scattered. On Hopper both products and the
// activation are one kernel; elsewhere, and for odd shapes, each is its own (the sorted composition).
#include <algorithm>

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
  std::byte* spread = nullptr;           // [S, D]   rows of slots times their weights, where those act on the input
  std::byte* gate_up = nullptr;          // [S, 2F]
  std::byte* hidden = nullptr;           // [S, F]
  std::byte* expert_out = nullptr;       // [S, D]
  std::int32_t* counters = nullptr;      // of the fused kernel
};

// `fused`: for Hopper's kernel, which has no gate_up in memory.
ForwardPlan Plan(const FusedMoeForwardArgs& args, bool fused, Scratch& scratch) {
  const std::int64_t slots = args.n * args.k, size = SizeOf(ElementOf(args.dtype));
  ForwardPlan plan = {.sort = PlanSort(slots, args.e, scratch)};
  plan.counts = scratch.Take<std::int32_t>(args.e);
  plan.offsets = scratch.Take<std::int32_t>(args.e + 1);
  plan.sorted_slots = scratch.Take<std::int32_t>(slots);
  plan.positions = scratch.Take<std::int32_t>(slots);
  const FusedWork work = {slots, args.e, args.d, args.f};
  if (args.weight_on_input) plan.spread = scratch.Take<std::byte>(slots * args.d * size);
  if (fused) {
    plan.sort.cleared_count = FusedCounters(work);
    plan.counters = plan.sort.cleared = scratch.Take<std::int32_t>(plan.sort.cleared_count);
  } else {
    plan.gate_up = scratch.Take<std::byte>(slots * 2 * args.f * size);
  }
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

absl::Status SpreadRows(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  const Element element = ElementOf(args.dtype);
  const SpreadRowsLaunch spread = {
      .n = args.n,
      .d = args.d,
      .k = args.k,
      .element = element,
      .vectorised = args.d % VectorElements(element) == 0 && Aligned16({args.rows, plan.spread}),
      .from = args.rows,
      .weights = args.weights,
      .to = plan.spread};
  return FromCuda(LaunchSpreadRows(spread, stream.handle), "fused_moe_forward: rows of slots");
}

absl::Status Up(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  return EnqueueGroupedGemm({.positions = args.n * args.k,
                             .experts = args.e,
                             .in = args.d,
                             .out_features = 2 * args.f,
                             .element = ElementOf(args.dtype),
                             .x = args.weight_on_input ? plan.spread : args.rows,
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

absl::Status Fused(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  return EnqueueFusedForward({.positions = args.n * args.k,
                              .experts = args.e,
                              .d = args.d,
                              .f = args.f,
                              .gate = GateOf(args.activation),
                              .limit = args.limit,
                              .alpha = args.alpha,
                              .tokens = UnitTokens(args.n),
                              .offsets = plan.offsets,
                              .sorted_slots = plan.sorted_slots,
                              .rows = plan.spread != nullptr ? plan.spread : args.rows,
                              .rows_divisor = args.weight_on_input ? 1 : static_cast<int>(args.k),
                              .gate_up = args.gate_up,
                              .down = args.down,
                              .hidden = plan.hidden,
                              .slots = plan.expert_out,
                              .counters = plan.counters},
                             stream);
}

absl::Status Sorted(const FusedMoeForwardArgs& args, const ForwardPlan& plan, Stream stream) {
  absl::Status status = Up(args, plan, stream);
  if (status.ok()) {
    status = EnqueueActivation({.m = args.n * args.k,
                                .f = args.f,
                                .activation = args.activation,
                                .limit = args.limit,
                                .alpha = args.alpha,
                                .dtype = args.dtype,
                                .in = plan.gate_up,
                                .out = plan.hidden},
                               plan.offsets + args.e, stream);
  }
  return status.ok() ? Down(args, plan, stream) : status;
}

absl::Status Combine(const FusedMoeForwardArgs& args, const ForwardPlan& plan, bool early, Stream stream) {
  const Element element = ElementOf(args.dtype);
  const GatherReduceLaunch launch = {
      .n = args.n,
      .d = args.d,
      .k = args.k,
      .element = element,
      .out_element = ElementOf(args.out_dtype),
      .vectorised = args.d % VectorElements(element) == 0 && Aligned16({plan.expert_out, args.out}),
      .expert_out = plan.expert_out,
      .slot_row = plan.positions,
      .weights = args.weight_on_input ? nullptr : args.weights,
      .out = args.out,
      .early = early};
  return FromCuda(LaunchGatherReduce(launch, stream.handle), "fused_moe_forward: combine");
}

}  // namespace

std::int64_t WorkspaceBytes(const FusedMoeForwardArgs& args) {
  Scratch sorted, fused;
  Plan(args, false, sorted);
  Plan(args, true, fused);
  return std::max(sorted.used(), fused.used());
}

absl::Status FusedMoeForward(const FusedMoeForwardArgs& args, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  const bool fused = UsesFused(*device, ElementOf(args.dtype), WeightCode::kBF16, args.d, args.f, args.e);
  Scratch scratch(workspace.data);
  const ForwardPlan plan = Plan(args, fused, scratch);

  absl::Status status = Sort(args, plan, stream);
  if (status.ok() && plan.spread != nullptr) status = SpreadRows(args, plan, stream);
  if (status.ok()) status = fused ? Fused(args, plan, stream) : Sorted(args, plan, stream);
  return status.ok() ? Combine(args, plan, fused, stream) : status;
}

}  // namespace expertd::cuda
