// Rows and expected outputs of a model's MoE layers in one safetensors file: hidden_states [N, D] and, for layer L,
// output.L [N, D], topk_ids.L [N, K] and topk_weights.L [N, K].
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/reference/compare.h"
#include "kernels/tensor.h"

namespace expertd::reference {

struct IoFile {
  std::int64_t n = 0, d = 0;
  DType dtype = DType::kBF16;  // of hidden_states: kBF16 or kF32
  std::vector<double> rows;    // [N, D]
  // By layer index. Routing is in the model's own order, which may be any, and empty where the file has none.
  std::map<std::int64_t, Answer> layers;
};

// InvalidArgument naming file, tensor and reason; NotFound when the file is missing.
absl::StatusOr<IoFile> ReadIoFile(const std::string& path);

}  // namespace expertd::reference
