// An engine without arithmetic: measures what the service costs around a layer.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

#include "kernels/engine.h"

namespace expertd {

struct NullEngineOptions {
  std::int64_t max_batch_rows = 8192;
  std::int64_t row_buffer_bytes = 1LL << 30;
  // What a batch takes besides the copies, spent asleep: a device of known speed. Zero: none.
  std::chrono::nanoseconds per_batch{0};
  std::chrono::nanoseconds per_row{0};
};

// Loads no weights. Run copies every segment's input rows to its output, converted when the element types differ, and
// answers questions about routing with unused slots (-1, weight 0).
std::unique_ptr<Engine> MakeNullEngine(const NullEngineOptions& options);

}  // namespace expertd
