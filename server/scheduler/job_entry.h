// A job between Submit and its completion, as the scheduler's books keep it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "server/job.h"
#include "server/scheduler/layer_queue.h"

namespace expertd {

// What StagingBook keeps of a job.
struct Ahead {
  std::shared_ptr<const RowBuffer> rows;  // the job's input; null: its rows go with their batch
  std::int64_t end = 0;                   // its waiting rows before this one have a slot on the device
  StagedRowsPtr copy;                     // of these; null until the engine has begun it
};

// While `rows` > 0 it waits in its layer's queue, while `running` > 0 batches hold some of its rows; when both are zero
// it is done.
struct JobEntry : Waiting {
  std::unique_ptr<Job> job;
  int running = 0;
  Clock::time_point idle_since;  // when it last came to have no row running
  absl::Status status;           // the first failure
  BatchReport report;
  Ahead ahead;

  std::int64_t first_waiting() const { return job->rows - rows; }
};

}  // namespace expertd
