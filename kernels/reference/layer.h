// A whole MoE layer in double over the exact (dequantised) weights of a LayerSource.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/layer_source.h"

namespace expertd::reference {

struct LayerRows {
  std::int64_t n = 0;
  std::vector<double> rows;  // [n, D]
  bool shared_expert = true;
  // Pre-routed when k > 0: [n, k] each.
  std::int64_t k = 0;
  std::vector<std::int32_t> topk_ids;
  std::vector<double> topk_weights;
};

struct LayerResult {
  std::vector<double> output;          // [n, D]
  std::vector<std::int32_t> topk_ids;  // [n, K] as used
  std::vector<double> topk_weights;    // [n, K]
  // Server-routed: by how much the choice score of the last chosen expert exceeds the best one not chosen, per row. A
  // routing that differs from an engine's f32 one is a mismatch only where this margin is above f32 rounding.
  std::vector<double> choice_margin;  // [n]
};

// Nothing is rounded between the steps.
LayerResult RunLayer(const LayerSource& source, const LayerRows& rows);

}  // namespace expertd::reference
