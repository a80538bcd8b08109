// Transposed weights, for plain callers.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// to[p, c, r] = from[p, r, c]. Enqueues one kernel on `stream` (a cudaStream_t); the answer is a cudaError_t.
int LaunchTranspose(Element element, std::int64_t planes, std::int64_t rows, std::int64_t columns, const void* from,
                    void* to, void* stream);

}  // namespace expertd::cuda
