// How a batch is cut into chunks that the workspace holds, and where everything of a chunk lies. Host arithmetic only.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/cuda/engine/cuda_layer.h"
#include "kernels/cuda/engine/expert_chain.h"
#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "kernels/engine.h"

namespace expertd::cuda {

class StagedCopy;

// Pieces in staging and in a chunk's output begin at multiples of 16.
inline std::int64_t Aligned(std::int64_t bytes) { return CeilDiv(bytes, 16) * 16; }

// A range of a segment's rows.
struct Piece {
  const Segment* segment = nullptr;
  std::int64_t first = 0;  // row of the segment
  std::int64_t rows = 0;
  std::int64_t row = 0;        // row of the chunk
  std::int64_t out_place = 0;  // byte of the chunk's output
  bool buffered = false;       // goes through the page-locked buffer: with its neighbours in one copy, or recorded
  const StagedCopy* copy = nullptr;  // holds its rows; null: none does, or it is buffered
  std::int64_t in_bytes(std::int64_t d) const { return rows * BytesOf(segment->input_dtype, d); }
  std::int64_t out_bytes(std::int64_t d) const { return rows * BytesOf(segment->output_dtype, d); }
};

// Rows of one type, server-routed ones first.
struct Chunk {
  DType dtype = DType::kBF16;
  std::vector<Piece> pieces;
  std::int64_t live = 0;  // rows of callers
  // Small chunks are filled up with rows that nobody asked for, to a size that many chunks share: what they enqueue is
  // then the same, and recorded. Such rows are zero and have neither slots nor output. Kernels read and write the rows
  // of recorded chunks where callers have them, so that no copy is enqueued for them.
  bool recorded = false;
  std::int64_t n = 0, routed_rows = 0, shared_rows = 0;
  std::int64_t kc = 0;              // slots of every row
  std::int64_t buffered_bytes = 0;  // of inputs or outputs, the larger
  std::int64_t out_bytes = 0;
  std::int64_t slots() const { return n * kc; }
};

// Rows of the chunk that so many are filled up to: the next power of two. 0: too many.
std::int64_t FilledUp(std::int64_t rows);

// What the host tells the device of a chunk: one copy, the same layout on both sides.
struct ChunkControl {
  std::int32_t* given_ids = nullptr;       // [n - routed_rows, kc]
  float* given_weights = nullptr;          // likewise
  std::int32_t* shared_row = nullptr;      // [n]
  std::int32_t* shared_list = nullptr;     // [up to shared_rows]: rows that want the shared expert
  std::int32_t* shared_offsets = nullptr;  // {0, rows in shared_list}
  std::int64_t* out_row = nullptr;         // [n] address of a row's output, plus 1 when it is bf16; 0: none
  std::int64_t* in_row = nullptr;          // [n] of a recorded chunk: address of a row's input; 0: none
  std::int32_t* live = nullptr;            // [1] Chunk::live
};
ChunkControl PlaceControl(const Chunk& chunk, Scratch& scratch);

// What the router chose, on its way back to callers.
struct ChunkRouting {
  std::int32_t* ids = nullptr;  // [routed_rows, K]
  float* weights = nullptr;     // likewise
};
ChunkRouting PlaceRouting(const Chunk& chunk, std::int64_t k, Scratch& scratch);

// Everything of a chunk in device memory.
struct ChunkMemory {
  std::byte* base = nullptr;  // of the workspace: the control lies there
  ChunkControl control;
  std::int64_t control_bytes = 0;
  ChunkRouting routing;
  std::byte* x = nullptr;          // [n, D], behind the control: so that one copy brings both
  std::int64_t routing_bytes = 0;  // from routing.ids on
  float* logits = nullptr;         // [routed_rows, E]
  float* partial = nullptr;        // of the router's sums, and the shared gate's
  float* shared_gate = nullptr;    // [n]
  std::int32_t* ids = nullptr;     // [n, kc]
  float* weights = nullptr;        // [n, kc]
  ExpertSortLaunch sort;
  std::int32_t* counters = nullptr;  // [counter_count] of both chains
  std::int64_t counter_count = 0;
  ExpertChain experts, shared;
  std::byte* out = nullptr;  // null when the chunk is recorded
};
ChunkMemory PlaceChunk(const CudaLayer& layer, const Chunk& chunk, Scratch& scratch);

struct ChunkLimits {
  std::int64_t rows = 0;
  std::int64_t workspace_bytes = 0;
  std::int64_t staging_bytes = 0;  // for control and buffered rows, and for routing and buffered rows
};

// Hands the batch's rows of `dtype` to run(), chunk by chunk. `in_reach`: kernels may use the segment's rows where they
// lie. ResourceExhausted: one row does not fit.
absl::Status ForEachChunk(const CudaLayer& layer, absl::Span<const Segment> segments, DType dtype,
                          const ChunkLimits& limits, absl::FunctionRef<bool(const Segment&)> in_reach,
                          absl::FunctionRef<absl::Status(const Chunk&)> run);

}  // namespace expertd::cuda
