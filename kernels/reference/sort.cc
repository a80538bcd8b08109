// Slots by expert: moe_align_block_size, fused_routing_scatter, fused_dispatch_pack.
#include <algorithm>
#include <cstring>
#include <vector>

#include "kernels/ops_check.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {
namespace {

absl::Span<const std::int32_t> Span(const std::int32_t* data, std::int64_t size) {
  return {data, static_cast<std::size_t>(data == nullptr ? 0 : size)};
}

}  // namespace

absl::Status MoeAlignBlockSize(const MoeAlignBlockSizeArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const auto ids = Span(args.ids, args.slots);
  if (absl::Status status = CheckIndices("ids", ids, args.e); !status.ok()) return status;

  std::fill_n(args.counts, args.e, 0);
  for (const std::int32_t id : ids) {
    if (id >= 0) ++args.counts[id];
  }
  args.offsets[0] = 0;
  for (std::int64_t e = 0; e < args.e; ++e) {
    const std::int64_t blocks = (args.counts[e] + args.block - 1) / args.block;
    args.offsets[e + 1] = static_cast<std::int32_t>(args.offsets[e] + blocks * args.block);
  }
  if (args.slots == 0) return absl::OkStatus();

  const std::int64_t padded = PaddedSlots(args.slots, args.e, args.block);
  std::fill_n(args.sorted_slots, padded, -1);
  std::fill_n(args.block_experts, padded / args.block, -1);
  std::vector<std::int32_t> next(args.offsets, args.offsets + args.e);
  for (std::size_t s = 0; s < ids.size(); ++s) {
    if (ids[s] >= 0) args.sorted_slots[next[ids[s]]++] = static_cast<std::int32_t>(s);
  }
  for (std::int64_t e = 0; e < args.e; ++e) {
    for (std::int64_t p = args.offsets[e]; p < args.offsets[e + 1]; p += args.block) {
      args.block_experts[p / args.block] = static_cast<std::int32_t>(e);
    }
  }
  return absl::OkStatus();
}

absl::Status FusedRoutingScatter(const FusedRoutingScatterArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const auto ids = Span(args.ids, args.n * args.k);
  if (absl::Status status = CheckIndices("ids", ids, args.e); !status.ok()) return status;

  const std::int64_t row_bytes = BytesOf(args.dtype, args.d);
  auto* const batched = static_cast<std::byte*>(args.batched);
  std::fill_n(args.counts, args.e, 0);
  *args.overflow = 0;
  if (args.max_tokens > 0) std::memset(batched, 0, static_cast<std::size_t>(args.e * args.max_tokens * row_bytes));
  for (std::int64_t s = 0; s < static_cast<std::int64_t>(ids.size()); ++s) {
    args.slot_pos[s] = -1;
    if (ids[s] < 0) continue;
    const std::int64_t p = args.counts[ids[s]]++;
    if (p >= args.max_tokens) {
      ++*args.overflow;
      continue;
    }
    const std::int64_t position = ids[s] * args.max_tokens + p;
    args.slot_pos[s] = static_cast<std::int32_t>(position);
    std::memcpy(batched + position * row_bytes, static_cast<const std::byte*>(args.rows) + s / args.k * row_bytes,
                static_cast<std::size_t>(row_bytes));
  }
  return absl::OkStatus();
}

absl::Status FusedDispatchPack(const FusedDispatchPackArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  const auto ids = Span(args.ids, args.n * args.k);
  if (absl::Status status = CheckIndices("ids", ids, args.e); !status.ok()) return status;

  const std::int64_t experts_per_shard = (args.e + args.shards - 1) / args.shards;
  const auto* const rows = static_cast<const std::uint16_t*>(args.rows);
  auto* const packed = static_cast<std::uint16_t*>(args.packed);
  std::int64_t position = 0;
  for (std::int64_t shard = 0; shard < args.shards; ++shard) {
    const std::int64_t first = position;
    for (std::int64_t s = 0; s < static_cast<std::int64_t>(ids.size()); ++s) {
      if (ids[s] < 0 || ids[s] / experts_per_shard != shard) continue;
      std::uint16_t* const row = packed + position * (args.d + 8);
      std::copy_n(rows + s / args.k * args.d, args.d, row);
      std::fill_n(row + args.d, 8, std::uint16_t{0});
      std::memcpy(row + args.d, &ids[s], sizeof(std::int32_t));
      args.source[position++] = static_cast<std::int32_t>(s);
    }
    args.counts[shard] = static_cast<std::int32_t>(position - first);
  }
  std::fill_n(args.source + position, static_cast<std::int64_t>(ids.size()) - position, -1);
  return absl::OkStatus();
}

}  // namespace expertd::reference
