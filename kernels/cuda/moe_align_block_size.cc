#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {

std::int64_t WorkspaceBytes(const MoeAlignBlockSizeArgs& args) {
  Scratch scratch;
  PlanSort(args.slots, args.e, scratch);
  return scratch.used();
}

absl::Status MoeAlignBlockSize(const MoeAlignBlockSizeArgs& args, Workspace workspace, Stream stream) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  if (absl::Status status = CheckWorkspace(workspace, WorkspaceBytes(args)); !status.ok()) return status;
  Scratch scratch(workspace.data);
  ExpertSortLaunch sort = PlanSort(args.slots, args.e, scratch);
  sort.ids = args.ids;
  sort.block = args.block;
  sort.counts = args.counts;
  sort.offsets = args.offsets;
  sort.sorted_slots = args.sorted_slots;
  sort.padded = PaddedSlots(args.slots, args.e, args.block);
  sort.block_experts = args.block_experts;
  return FromCuda(LaunchExpertSort(sort, stream.handle), "moe_align_block_size");
}

}  // namespace expertd::cuda
