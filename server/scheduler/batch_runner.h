// One batch on the engine, and what happens when the engine refuses it. No threads, no locks.
#pragma once

#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/types/span.h"
#include "kernels/engine.h"
#include "server/job.h"

namespace expertd {

// Rows [first_row, first_row + rows) of a request in a batch, and how they fared.
struct Piece {
  const Job* job = nullptr;
  std::int64_t first_row = 0;
  std::int64_t rows = 0;
  StagedRowsPtr staged;  // null, or a copy that may hold them

  // Written by RunBatch.
  absl::Status status;          // ok: the job's output holds these rows
  StageTimes stages;            // summed over the batches that computed them
  std::int64_t batch_rows = 0;  // of the batch that computed them; of the largest, where they were cut
  std::int64_t batch_requests = 0;
};

StageTimes operator+(const StageTimes& a, const StageTimes& b);

// The engine's view of a piece.
Segment SegmentOf(const Piece& piece);

using BatchDone = absl::FunctionRef<void(std::int64_t rows, std::int64_t requests, const StageTimes& stages)>;

// Runs the pieces, all of `layer`, as one batch. When the engine fails, runs each half of it alone, and so on until
// only the culprits have failed, each with the status that the engine gave for it alone; a single piece that fails for
// want of memory (ResourceExhausted) is cut in halves of rows likewise. Internal is not tried again: the device is
// lost, and every piece without a result gets that status, which is returned. `done` hears of every batch that
// succeeded.
absl::Status RunBatch(Engine& engine, const Layer& layer, absl::Span<Piece> pieces, BatchDone done);

}  // namespace expertd
