// The values of tensors that come from outside: an engine trusts them, so whoever hands them to one checks them first.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/layer_spec.h"
#include "kernels/tensor.h"

namespace expertd {

// Ids in [-1, num_experts), none but -1 twice in a row, weights finite: InvalidArgument naming the first element that
// is not.
absl::Status CheckRouting(const std::int32_t* ids, const float* weights, std::int64_t rows, std::int64_t k,
                          const LayerSpec& spec);

// True when some element of [rows, D] is NaN or infinite; `row` receives the first such row.
bool HasNonFinite(const void* rows_data, DType dtype, std::int64_t rows, std::int64_t hidden_size, std::int64_t* row);

}  // namespace expertd
