// An Engine that computes every batch with the double reference: slow, exact, and the same interface. For tests of what
// stands on an engine, and of the contract suite itself.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/engine.h"

namespace expertd::testing {

struct ReferenceEngineOptions {
  std::int64_t max_batch_rows = 4096;
  std::size_t row_buffer_bytes = std::size_t{64} << 20;
};

// Copies the weights of a layer as f32 (fp8 values are rounded by at most 6e-8), so small layers only. Outputs and
// routing weights are rounded once, and a routing decided in double is what it reports.
std::unique_ptr<Engine> MakeReferenceEngine(const ReferenceEngineOptions& options = {});

}  // namespace expertd::testing
