#include "kernels/cuda/row_ops.h"

#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/row_ops_config.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {
namespace {

// Rows of d elements of `element` at these addresses can be moved 16 bytes at a time.
bool Vectorised(std::int64_t d, Element element, std::initializer_list<const void*> rows) {
  return d % VectorElements(element) == 0 && Aligned16(rows);
}

// Keeps rows in shared memory where the device and the shape allow it.
absl::Status ChooseHeld(SpreadRowsLaunch& spread) {
  const absl::StatusOr<DeviceLimits> device = CurrentDevice();
  if (!device.ok()) return device.status();
  if (!spread.vectorised) return absl::OkStatus();
  spread.held = ChooseHeldRows(*device, spread.n, spread.k, spread.d * SizeOf(spread.element), spread.cleared);
  return absl::OkStatus();
}

std::uint8_t* TakeMarks(const FusedWeightedScatterArgs& args, Scratch& scratch) {
  return ScanSlots(args.n * args.k) ? nullptr : scratch.Take<std::uint8_t>(args.r);
}

// Sorts the slots, then moves the rows to where they stand. Answers a cudaError_t.
int EnqueueSortAndSpread(const ExpertSortLaunch& sort, const SpreadRowsLaunch& spread, Stream stream) {
  const bool no_rows = spread.n == 0 && spread.cleared == 0, no_room = sort.capacity == 0;
  if (CountSlots(sort.slots, sort.bins) && !no_room) return LaunchSortAndSpread(sort, spread, stream.handle);
  const int error = LaunchExpertSort(sort, stream.handle);
  return error != 0 || no_rows || no_room ? error : LaunchSpreadRows(spread, stream.handle);
}

}  // namespace

absl::Status FusedGatherReduce(const FusedGatherReduceArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  const Element element = ElementOf(args.dtype);
  const GatherReduceLaunch launch = {.n = args.n,
                                     .d = args.d,
                                     .k = args.k,
                                     .element = element,
                                     .out_element = ElementOf(args.out_dtype),
                                     .vectorised = Vectorised(args.d, element, {args.expert_out, args.out}),
                                     .expert_out = args.expert_out,
                                     .slot_row = args.slot_row,
                                     .weights = args.weights,
                                     .out = args.out};
  return FromCuda(LaunchGatherReduce(launch, stream.handle), "fused_gather_reduce");
}

std::int64_t WorkspaceBytes(const FusedWeightedScatterArgs& args) {
  Scratch scratch;
  TakeMarks(args, scratch);
  return scratch.used();
}

absl::Status FusedWeightedScatter(const FusedWeightedScatterArgs& args, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.r == 0) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch scratch(workspace.data);
  const Element element = ElementOf(args.dtype);
  SpreadRowsLaunch spread = {.n = args.n,
                             .d = args.d,
                             .k = args.k,
                             .element = element,
                             .vectorised = Vectorised(args.d, element, {args.grad_out, args.grad_expert}),
                             .from = args.grad_out,
                             .slot_row = args.slot_row,
                             .weights = args.weights,
                             .to = args.grad_expert,
                             .cleared = args.r,
                             .marks = TakeMarks(args, scratch)};
  if (absl::Status status = ChooseHeld(spread); !status.ok()) return status;
  return FromCuda(LaunchSpreadRows(spread, stream.handle), "fused_weighted_scatter");
}

absl::Status FusedRoutingWeightGrad(const FusedRoutingWeightGradArgs& args, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.n == 0) return status;
  const Element element = ElementOf(args.dtype);
  const RoutingWeightGradLaunch launch = {.n = args.n,
                                          .d = args.d,
                                          .k = args.k,
                                          .element = element,
                                          .vectorised = Vectorised(args.d, element, {args.expert_out, args.grad_out}),
                                          .expert_out = args.expert_out,
                                          .grad_out = args.grad_out,
                                          .slot_row = args.slot_row,
                                          .grad_weights = args.grad_weights};
  return FromCuda(LaunchRoutingWeightGrad(launch, stream.handle), "fused_routing_weight_grad");
}

// Slots are ranked by expert first, which also counts them; then rows go where their slots stand, and the rest of each
// expert's positions is cleared.
std::int64_t WorkspaceBytes(const FusedRoutingScatterArgs& args) {
  Scratch scratch;
  PlanSort(args.n * args.k, args.e, scratch);
  return scratch.used();
}

absl::Status FusedRoutingScatter(const FusedRoutingScatterArgs& args, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch scratch(workspace.data);
  ExpertSortLaunch sort = PlanSort(args.n * args.k, args.e, scratch);
  sort.ids = args.ids;
  sort.counts = args.counts;
  sort.positions = args.slot_pos;
  sort.capacity = args.max_tokens;
  sort.overflow = args.overflow;
  const Element element = ElementOf(args.dtype);
  SpreadRowsLaunch spread = {.n = args.n,
                             .d = args.d,
                             .k = args.k,
                             .element = element,
                             .vectorised = Vectorised(args.d, element, {args.rows, args.batched}),
                             .from = args.rows,
                             .slot_row = args.slot_pos,
                             .to = args.batched,
                             .cleared = args.e * args.max_tokens,
                             .max_tokens = args.max_tokens,
                             .counts = args.counts,
                             .sorted = true};
  if (absl::Status status = ChooseHeld(spread); !status.ok()) return status;
  return FromCuda(EnqueueSortAndSpread(sort, spread, stream), "fused_routing_scatter");
}

namespace {

struct PackPlan {
  ExpertSortLaunch sort;
  std::int32_t* positions = nullptr;  // [S] packed row of each slot
};
PackPlan PlanPack(const FusedDispatchPackArgs& args, Scratch& scratch) {
  PackPlan plan = {.sort = PlanSort(args.n * args.k, args.shards, scratch)};
  plan.positions = scratch.Take<std::int32_t>(args.n * args.k);
  return plan;
}

}  // namespace

std::int64_t WorkspaceBytes(const FusedDispatchPackArgs& args) {
  Scratch scratch;
  PlanPack(args, scratch);
  return scratch.used();
}

// A sort by shard instead of by expert, and the rows spread with the ids behind them.
absl::Status FusedDispatchPack(const FusedDispatchPackArgs& args, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch scratch(workspace.data);
  PackPlan plan = PlanPack(args, scratch);
  plan.sort.ids = args.ids;
  plan.sort.ids_per_bin = CeilDiv(args.e, args.shards);
  plan.sort.counts = args.counts;
  plan.sort.positions = plan.positions;
  plan.sort.sorted_slots = args.source;
  SpreadRowsLaunch spread = {.n = args.n,
                             .d = args.d,
                             .k = args.k,
                             .tail = 8,
                             .element = Element::kBF16,
                             .vectorised = Vectorised(args.d, Element::kBF16, {args.rows, args.packed}),
                             .from = args.rows,
                             .slot_row = plan.positions,
                             .tail_ids = args.ids,
                             .to = args.packed,
                             .sorted = true};
  if (absl::Status status = ChooseHeld(spread); !status.ok()) return status;
  return FromCuda(EnqueueSortAndSpread(plan.sort, spread, stream), "fused_dispatch_pack");
}

}  // namespace expertd::cuda
