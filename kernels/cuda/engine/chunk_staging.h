// A chunk's way from the host to the device and back: its tables, its rows, what the router chose.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/engine/batch_plan.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/host.h"

namespace expertd::cuda {

// Page-locked memory of one runner, for one chunk at a time. The order of calls: FillTables; AwaitCopies; FetchRows
// where the chunk is recorded, else CopyIn; what computes; CopyRouting where it is recorded, else CopyOut; and when the
// stream is done, Answer.
class ChunkStaging {
 public:
  // `bytes` for each direction: ChunkLimits::staging_bytes.
  static absl::StatusOr<ChunkStaging> Create(std::int64_t bytes);
  ChunkStaging() = default;

  // Also moves the rows of a recorded chunk that kernels cannot reach to where they can.
  void FillTables(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory) const;
  // The stream goes on when all rows that were sent ahead of the chunk are there.
  static absl::Status AwaitCopies(const Chunk& chunk, Stream stream);
  // One kernel fetches tables and rows. What it is launched with depends on the chunk's shape alone.
  absl::Status FetchRows(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory, Stream stream) const;
  // Tables and the small segments behind them in one copy, large ones from where they lie, on the host or the device.
  absl::Status CopyIn(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory, Stream stream) const;

  // Nothing where nobody asked for it.
  absl::Status CopyRouting(const Chunk& chunk, const ChunkMemory& memory, Stream stream) const;
  // Routing and rows.
  absl::Status CopyOut(const CudaLayer& layer, const Chunk& chunk, const ChunkMemory& memory, Stream stream) const;
  // What lies in staging, to its callers.
  void Answer(const CudaLayer& layer, const Chunk& chunk) const;

 private:
  Memory in_, out_;
};

}  // namespace expertd::cuda
