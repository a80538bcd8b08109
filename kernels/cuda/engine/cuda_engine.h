// The CUDA engine: experts resident in the memory of one NVIDIA device, compute capability 8.0 or newer.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/engine.h"
#include "kernels/expert_path.h"

namespace expertd {

struct CudaEngineOptions {
  int device = 0;                      // as CUDA numbers them
  std::int64_t max_batch_rows = 8192;  // reported in EngineInfo; larger batches run all the same, in chunks
  // Device memory for the rows and slots of the batches in flight, taken when the engine is made; layers live beside
  // it. 0: a sixteenth of the device's memory, at most 4 GiB.
  std::int64_t workspace_bytes = 0;
  // kBatched: bf16 and f32 weights only, and rows of the other type take the sorted path all the same. Not
  // batch-invariant, which the numerics id says. Needs cuBLAS on the machine. kFp8Rows: fp8 weights only, and only on
  // compute capability 9.0; rows of f32 are not quantised.
  ExpertPath path = ExpertPath::kAuto;
  // Device memory for StageRows, taken when the engine is made. 0: it does not stage.
  std::int64_t staging_bytes = 0;
  std::int64_t row_buffer_bytes = 1LL << 30;  // budget of AcquireRows: page-locked host memory, taken as it is used
};

// Unavailable: no driver, no such device, or one that is too old; or no cuBLAS for the batched path, or no Hopper for
// fp8 rows. ResourceExhausted: the workspace or the staging does not fit.
absl::StatusOr<std::unique_ptr<Engine>> MakeCudaEngine(const CudaEngineOptions& options);

}  // namespace expertd
