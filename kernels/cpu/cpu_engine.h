// The CPU engine: experts resident in host memory, kernels chosen at run time for the processor.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/engine.h"

namespace expertd {

struct CpuEngineOptions {
  int threads = 0;                             // worker threads that compute; 0: one for each core this process may use
  std::int64_t max_batch_rows = 8192;          // reported in EngineInfo; larger batches run all the same, in chunks
  std::int64_t workspace_bytes = 256LL << 20;  // inputs, activations and outputs of a chunk's slots; resident once used
  std::int64_t row_buffer_bytes = 1LL << 30;   // budget of AcquireRows
  // "": the best that the processor has. "avx2", "avx512", "avx512bf16", "amx": at most this; for tests and
  // comparisons.
  std::string isa;
};

// InvalidArgument: an unknown or unavailable isa.
absl::StatusOr<std::unique_ptr<Engine>> MakeCpuEngine(const CpuEngineOptions& options);

}  // namespace expertd
