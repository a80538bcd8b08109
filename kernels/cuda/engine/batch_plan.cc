#include "kernels/cuda/engine/batch_plan.h"

#include <algorithm>
#include <bit>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/engine/router_gemm.h"
#include "kernels/cuda/engine/staged_copies.h"

namespace expertd::cuda {
namespace {

// Below, a copy of its own costs more than a pass through the staging buffer.
constexpr std::int64_t kBufferedBytes = 32 << 10;

bool UsesShared(const CudaLayer& layer, const Segment& segment) {
  return segment.shared_expert && layer.shared().count > 0;
}

// Rows on the device are copied there, whatever their number.
bool IsBuffered(const Segment& segment, std::int64_t d) {
  return !segment.on_device && segment.rows * d * 4 <= kBufferedBytes;
}

// Null: rows of the piece are to be fetched from the host.
const StagedCopy* CopyOf(const Piece& piece, std::int64_t d) {
  if (piece.buffered || piece.segment->staged == nullptr) return nullptr;
  const auto* copy = static_cast<const StagedCopy*>(piece.segment->staged);
  const auto* input = static_cast<const std::byte*>(piece.segment->input);
  const std::int64_t bytes = piece.in_bytes(d);
  return copy->Of(input + bytes / piece.rows * piece.first, bytes) == nullptr ? nullptr : copy;
}

class Chunker {
 public:
  Chunker(const CudaLayer& layer, DType dtype, const ChunkLimits& limits,
          absl::FunctionRef<bool(const Segment&)> in_reach, absl::FunctionRef<absl::Status(const Chunk&)> run)
      : layer_(layer), limits_(limits), in_reach_(in_reach), run_(run) {
    chunk_.dtype = dtype;
  }

  absl::Status Add(const Segment& segment) {
    for (std::int64_t done = 0; done < segment.rows;) {
      const std::int64_t rows = RowsThatFit(segment, segment.rows - done);
      if (rows == 0) {
        if (chunk_.n == 0) {
          return absl::ResourceExhaustedError(
              absl::StrCat("workspace: ", limits_.workspace_bytes, " bytes, and ", limits_.staging_bytes,
                           " of staging, do not hold one row of ", layer_.spec().Name(), " with ",
                           std::max(segment.k, layer_.spec().experts_per_token), " slots"));
        }
        if (absl::Status status = Flush(); !status.ok()) return status;
        continue;
      }
      chunk_.pieces.push_back({.segment = &segment,
                               .first = done,
                               .rows = rows,
                               .row = chunk_.n,
                               .out_place = chunk_.out_bytes,
                               .buffered = IsBuffered(segment, d())});
      chunk_.pieces.back().copy = CopyOf(chunk_.pieces.back(), d());
      Count(segment, rows, chunk_);
      done += rows;
    }
    return absl::OkStatus();
  }

  absl::Status Flush() {
    if (chunk_.n == 0) return absl::OkStatus();
    Record();
    absl::Status status = run_(chunk_);
    chunk_ = {.dtype = chunk_.dtype};
    return status;
  }

 private:
  std::int64_t d() const { return layer_.spec().hidden_size; }

  // Not where routed rows and others would need filling up both, nor on the batched path,
  // which waits for the device on its way.
  void Record() {
    const std::int64_t n = FilledUp(chunk_.n);
    if (n == 0 || layer_.batched()) return;
    if (chunk_.routed_rows > 0 && chunk_.routed_rows < chunk_.n) return;
    Chunk recorded = chunk_;
    recorded.recorded = true;
    recorded.n = n;
    if (chunk_.routed_rows > 0) recorded.routed_rows = n;
    if (chunk_.shared_rows > 0) recorded.shared_rows = n;
    recorded.buffered_bytes = 0;
    for (Piece& piece : recorded.pieces) {
      piece.buffered = !in_reach_(*piece.segment);
      piece.copy = CopyOf(piece, d());
      if (piece.buffered) recorded.buffered_bytes += Aligned(piece.rows * d() * 4);
    }
    if (Fits(recorded)) chunk_ = std::move(recorded);
  }

  // Adds rows of `segment` to the chunk's sizes.
  void Count(const Segment& segment, std::int64_t rows, Chunk& chunk) const {
    chunk.n += rows;
    chunk.live += rows;
    chunk.routed_rows += segment.k == 0 ? rows : 0;
    chunk.shared_rows += UsesShared(layer_, segment) ? rows : 0;
    chunk.kc = std::max(chunk.kc, segment.k > 0 ? segment.k : layer_.spec().experts_per_token);
    chunk.out_bytes += Aligned(rows * BytesOf(segment.output_dtype, d()));
    if (IsBuffered(segment, d())) chunk.buffered_bytes += Aligned(rows * d() * 4);
  }

  std::int64_t Needed(const Chunk& chunk) const {
    Scratch scratch;
    PlaceChunk(layer_, chunk, scratch);
    return scratch.used();
  }
  bool Fits(const Chunk& chunk) const {
    Scratch control, routing;
    PlaceControl(chunk, control);
    PlaceRouting(chunk, layer_.spec().experts_per_token, routing);
    return chunk.n <= limits_.rows && Needed(chunk) <= limits_.workspace_bytes &&
           std::max(control.used(), routing.used()) + chunk.buffered_bytes <= limits_.staging_bytes;
  }

  // The most of `rows` rows that still fit into the chunk.
  std::int64_t RowsThatFit(const Segment& segment, std::int64_t rows) const {
    const auto fits = [&](std::int64_t count) {
      Chunk sizes = {.dtype = chunk_.dtype,
                     .n = chunk_.n,
                     .routed_rows = chunk_.routed_rows,
                     .shared_rows = chunk_.shared_rows,
                     .kc = chunk_.kc,
                     .buffered_bytes = chunk_.buffered_bytes,
                     .out_bytes = chunk_.out_bytes};
      Count(segment, count, sizes);
      return Fits(sizes);
    };
    if (fits(rows)) return rows;
    std::int64_t low = 0, high = rows;  // low rows fit, high do not
    while (high - low > 1) {
      const std::int64_t middle = (low + high) / 2;
      (fits(middle) ? low : high) = middle;
    }
    return low;
  }

  const CudaLayer& layer_;
  const ChunkLimits& limits_;
  const absl::FunctionRef<bool(const Segment&)> in_reach_;
  const absl::FunctionRef<absl::Status(const Chunk&)> run_;
  Chunk chunk_;
};

}  // namespace

std::int64_t FilledUp(std::int64_t rows) {
  constexpr std::uint64_t kMost = 256;  // above, launches are hidden behind what is being computed
  const std::uint64_t filled = std::bit_ceil(static_cast<std::uint64_t>(rows));
  return filled <= kMost ? static_cast<std::int64_t>(filled) : 0;
}

ChunkControl PlaceControl(const Chunk& chunk, Scratch& scratch) {
  const std::int64_t given = (chunk.n - chunk.routed_rows) * chunk.kc;
  ChunkControl control;
  control.given_ids = scratch.Take<std::int32_t>(given);
  control.given_weights = scratch.Take<float>(given);
  control.shared_row = scratch.Take<std::int32_t>(chunk.n);
  control.shared_list = scratch.Take<std::int32_t>(chunk.shared_rows);
  control.shared_offsets = scratch.Take<std::int32_t>(2);
  control.out_row = scratch.Take<std::int64_t>(chunk.n);
  control.in_row = scratch.Take<std::int64_t>(chunk.recorded ? chunk.n : 0);
  control.live = scratch.Take<std::int32_t>(1);
  return control;
}

ChunkRouting PlaceRouting(const Chunk& chunk, std::int64_t k, Scratch& scratch) {
  ChunkRouting routing;
  routing.ids = scratch.Take<std::int32_t>(chunk.routed_rows * k);
  routing.weights = scratch.Take<float>(chunk.routed_rows * k);
  return routing;
}

ChunkMemory PlaceChunk(const CudaLayer& layer, const Chunk& chunk, Scratch& scratch) {
  const LayerSpec& spec = layer.spec();
  const std::int64_t size = BitsOf(chunk.dtype) / 8, d = spec.hidden_size, slots = chunk.slots();
  ChunkMemory memory;
  memory.base = scratch.Take<std::byte>(0);
  memory.control = PlaceControl(chunk, scratch);
  memory.control_bytes = scratch.used();
  memory.x = scratch.Take<std::byte>(chunk.n * d * size);
  const std::int64_t before_routing = scratch.used();
  memory.routing = PlaceRouting(chunk, spec.experts_per_token, scratch);
  memory.routing_bytes = scratch.used() - before_routing;
  memory.logits = scratch.Take<float>(chunk.routed_rows * spec.num_experts);
  memory.partial = scratch.Take<float>(
      std::max(RouterPartials(chunk.routed_rows, spec.num_experts, d), RouterPartials(chunk.n, 1, d)));
  memory.shared_gate = scratch.Take<float>(chunk.shared_rows > 0 ? chunk.n : 0);
  memory.ids = scratch.Take<std::int32_t>(slots);
  memory.weights = scratch.Take<float>(slots);
  memory.sort = PlanSort(slots, std::max<std::int64_t>(1, spec.held_experts), scratch);
  memory.sort.ids = memory.ids;
  memory.sort.counts = scratch.Take<std::int32_t>(spec.held_experts);
  memory.sort.offsets = scratch.Take<std::int32_t>(spec.held_experts + 1);
  memory.sort.sorted_slots = scratch.Take<std::int32_t>(slots);
  memory.sort.positions = scratch.Take<std::int32_t>(slots);
  // Side by side, to be cleared at once.
  const std::int64_t before = scratch.used();
  auto* const counters = scratch.Take<std::int32_t>(ChainCounters(slots, layer.experts(), chunk.dtype));
  auto* const shared_counters =
      scratch.Take<std::int32_t>(ChainCounters(chunk.shared_rows, layer.shared(), chunk.dtype));
  memory.counters = counters;
  memory.counter_count = (scratch.used() - before) / 4;
  memory.experts =
      PlaceChain(chunk.n, slots, layer.experts(), chunk.dtype, spec.routing.weight_on_input, counters, scratch);
  memory.shared = PlaceChain(chunk.n, chunk.shared_rows, layer.shared(), chunk.dtype, false, shared_counters, scratch);
  if (!chunk.recorded) memory.out = scratch.Take<std::byte>(chunk.out_bytes);
  return memory;
}

absl::Status ForEachChunk(const CudaLayer& layer, absl::Span<const Segment> segments, DType dtype,
                          const ChunkLimits& limits, absl::FunctionRef<bool(const Segment&)> in_reach,
                          absl::FunctionRef<absl::Status(const Chunk&)> run) {
  // Server-routed rows first; buffered segments beside each other.
  std::vector<const Segment*> order;
  for (const Segment& segment : segments) {
    if (segment.input_dtype == dtype && segment.rows > 0) order.push_back(&segment);
  }
  std::stable_sort(order.begin(), order.end(), [&](const Segment* a, const Segment* b) {
    return std::tuple(a->k > 0, !IsBuffered(*a, layer.spec().hidden_size)) <
           std::tuple(b->k > 0, !IsBuffered(*b, layer.spec().hidden_size));
  });
  Chunker chunker(layer, dtype, limits, in_reach, run);
  for (const Segment* segment : order) {
    if (absl::Status status = chunker.Add(*segment); !status.ok()) return status;
  }
  return chunker.Flush();
}

}  // namespace expertd::cuda
