// The engine of a device, by the name that the --device flag takes.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/engine.h"
#include "kernels/expert_path.h"

namespace expertd {

// What every engine needs to know; 0 leaves the engine's own default.
struct EngineOptions {
  int threads = 0;                    // worker threads that compute, on the CPU
  std::int64_t max_batch_rows = 0;    // bounds the workspace
  std::int64_t row_buffer_bytes = 0;  // budget of AcquireRows
  std::int64_t staging_bytes = 0;     // device memory for StageRows, where rows are computed on one; 0: none
  ExpertPath path = ExpertPath::kAuto;
};

// `device` is "cpu" or "cuda:<index>". InvalidArgument: not a device's name, or a path that it does not have (the
// caller's mistake); Unavailable: this build or this machine does not have it.
absl::StatusOr<std::unique_ptr<Engine>> MakeEngine(absl::string_view device, const EngineOptions& options = {});

}  // namespace expertd
