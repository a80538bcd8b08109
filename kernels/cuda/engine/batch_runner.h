// One batch at a time through one layer, on a stream and in a workspace of its own.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "kernels/cuda/engine/batch_plan.h"
#include "kernels/cuda/engine/batched_experts.h"
#include "kernels/cuda/engine/chunk_graphs.h"
#include "kernels/cuda/engine/chunk_staging.h"
#include "kernels/cuda/engine/cuda_layer.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/engine/pinned_ranges.h"
#include "kernels/engine.h"

namespace expertd::cuda {

// Not thread-safe. The calling thread's current device is the one that it was made on.
class BatchRunner {
 public:
  // `max_rows` rows are computed together, fewer where `workspace_bytes` do not hold them. The batched path takes half
  // of these bytes for itself. `pinned`, which must outlive it, knows what memory kernels may use where it lies.
  static absl::StatusOr<std::unique_ptr<BatchRunner>> Create(std::int64_t max_rows, std::int64_t workspace_bytes,
                                                             ExpertPath path, const PinnedRanges& pinned);

  // Waits for the outputs.
  absl::Status Run(const CudaLayer& layer, absl::Span<const Segment> segments, StageTimes* times);

  // From any thread.
  std::int64_t graphs() const { return graphs_.count(); }
  std::int64_t rows_on_arrival() const { return rows_on_arrival_; }
  std::int64_t rows_with_batch() const { return rows_with_batch_; }

  // Whether CUDA will fail every call from now on; to be asked after a Run has failed.
  bool DeviceLost() const;

  // ResourceExhausted when not even one row of the layer fits; InvalidArgument when the path cannot compute it.
  absl::Status CheckFits(const CudaLayer& layer) const;

 private:
  explicit BatchRunner(const PinnedRanges& pinned) : pinned_(pinned) {}

  using Seconds = std::array<double, 4>;  // route, gemm, combine, stage out
  using Step = absl::Status (BatchRunner::*)(const CudaLayer&, const Chunk&, const ChunkMemory&);

  absl::Status RunChunk(const CudaLayer& layer, const Chunk& chunk, StageTimes& times);
  absl::StatusOr<Seconds> Enqueue(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::StatusOr<Seconds> Replay(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status Route(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status FillSlots(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status Sort(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status RunExperts(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status RunBatched(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status RunShared(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  absl::Status Combine(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory);
  static const Step kComputing[3];  // route, experts, combine
  Stream stream() const { return {stream_.get()}; }

  std::atomic<std::int64_t> rows_on_arrival_ = 0, rows_with_batch_ = 0;  // as StagingTotals

  const PinnedRanges& pinned_;
  ChunkLimits limits_;
  OwnedStream stream_;
  Memory workspace_;
  ChunkGraphs graphs_;                       // of this workspace
  std::unique_ptr<BatchedExperts> batched_;  // null unless that is the engine's path
  ChunkStaging staging_;
  Memory stamps_;                    // page-locked: when the steps of a recorded chunk ended, ns
  std::array<OwnedEvent, 5> marks_;  // behind the steps of another
};

}  // namespace expertd::cuda
