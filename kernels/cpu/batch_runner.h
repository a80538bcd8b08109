// One batch through one layer: rows -> router -> slots by expert -> two products per expert -> weighted sums.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/cpu/cpu_layer.h"
#include "kernels/cpu/huge_buffer.h"
#include "kernels/cpu/isa_kernels.h"
#include "kernels/cpu/routing.h"
#include "kernels/cpu/worker_pool.h"
#include "kernels/engine.h"

namespace expertd::cpu {

// Memory for one chunk of rows of one layer: rows_ and slots_ many of each kind of row. Pitches are in bytes, an odd
// number of cache lines, so that equal columns of neighbouring rows do not compete for the same lines of a cache.
struct ChunkShape {
  bool bf16 = false;              // element type that products read: bf16 or f32
  std::int64_t x_pitch = 0;       // a slot's input
  std::int64_t h_pitch = 0;       // a slot's act(gate, up)
  std::int64_t y_pitch = 0;       // a slot's output, f32
  std::int64_t wide_pitch = 0;    // a row in f32
  std::int64_t logits_pitch = 0;  // a row's router logits, and its shared gate's, f32
  std::int64_t row_bytes() const { return wide_pitch + 2 * logits_pitch; }
  std::int64_t slot_bytes() const { return x_pitch + h_pitch + y_pitch; }
};
ChunkShape ShapeFor(const CpuLayer& layer, DType rows);

// Not thread-safe: one Run at a time.
class BatchRunner {
 public:
  // Batches that need more than `workspace` holds are run in chunks; it must hold MinimumWorkspace of every layer.
  BatchRunner(const IsaKernels& kernels, WorkerPool& pool, HugeBuffer workspace)
      : kernels_(kernels), pool_(pool), workspace_(std::move(workspace)) {}

  static std::int64_t MinimumWorkspace(const CpuLayer& layer);
  std::int64_t workspace_bytes() const { return static_cast<std::int64_t>(workspace_.size()); }

  void Run(const CpuLayer& layer, absl::Span<const Segment> segments, StageTimes* times);

 private:
  struct Row {
    const Segment* segment = nullptr;
    std::int64_t index = 0;       // within the segment
    std::int64_t first_slot = 0;  // its slots: routed ones in the order of k, then the shared expert's
    std::int64_t slots = 0;
    std::int64_t routed = 0;  // without the shared one
  };
  struct Slot {
    std::int64_t expert = -1;    // into layer.experts(); -1: not used or not held
    float weight = 0.0f;         // of its output in the row's sum
    float input_scale = 1.0f;    // of its input
    std::int64_t position = -1;  // in the order of experts
  };
  struct ActiveExpert {
    const PackedExpert* weights = nullptr;
    std::int64_t first = 0;  // positions [first, first + count)
    std::int64_t count = 0;
  };
  struct Chunk {
    const CpuLayer* layer = nullptr;
    ChunkShape shape;
    std::byte *wide = nullptr, *logits = nullptr, *gates = nullptr, *x = nullptr, *h = nullptr, *y = nullptr;
  };

  void RunRowsOf(const CpuLayer& layer, absl::Span<const Segment> segments, DType dtype, StageTimes* times);
  void AddRow(const CpuLayer& layer, const Segment& segment, std::int64_t index);
  void RunChunk(const CpuLayer& layer, const ChunkShape& shape, StageTimes* times);

  // The stages of a chunk.
  Chunk Carve(const CpuLayer& layer, const ChunkShape& shape) const;
  void Widen(const Chunk& chunk);
  void Route(const Chunk& chunk);
  void RouteOne(const Chunk& chunk, std::int64_t row, RoutingScratch& scratch);
  void SortSlots(const Chunk& chunk);
  void Gather(const Chunk& chunk);
  void GateUp(const Chunk& chunk);
  void Down(const Chunk& chunk);
  void Combine(const Chunk& chunk);

  void RunMatrix(const PackedMatrix& matrix, const Chunk& chunk, std::byte* out);
  void ForEachPanel(std::int64_t (*panels)(const PackedExpert&),
                    absl::FunctionRef<void(const ActiveExpert&, std::int64_t panel)> work);
  bool AnyServerRouted() const;

  // Set at construction.
  const IsaKernels& kernels_;
  WorkerPool& pool_;
  HugeBuffer workspace_;

  // The chunk in hand; kept to reuse their memory.
  std::vector<Row> rows_;
  std::vector<Slot> slots_;
  std::vector<std::int64_t> slot_row_;      // by position
  std::vector<std::int64_t> slot_at_;       // by position
  std::vector<std::int64_t> expert_first_;  // by expert
  std::vector<ActiveExpert> active_;
  std::vector<std::int64_t> first_panel_;  // of each active expert, in the product at hand
};

}  // namespace expertd::cpu
