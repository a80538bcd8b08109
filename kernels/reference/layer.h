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
  bool fp8_rows = false;  // experts' rows, and what they hand to `down`, are quantised as fp8_rows.h says
  // Pre-routed when k > 0: [n, k] each.
  std::int64_t k = 0;
  std::vector<std::int32_t> topk_ids;
  std::vector<double> topk_weights;
};

struct LayerResult {
  std::vector<double> output;          // [n, D]
  std::vector<std::int32_t> topk_ids;  // [n, K] as used
  std::vector<double> topk_weights;    // [n, K]
  // Server-routed: how clear the choice of each row is. The least distance between what was chosen (experts, groups,
  // and the sparse mixer's masks) and what was not, relative to the size of the numbers that f32 rounds on the way. A
  // routing that differs from an engine's f32 one is a mismatch only where the margin is above kRoutingTie.
  std::vector<double> choice_margin;  // [n]
};

// Some 16 roundings of f32.
inline constexpr double kRoutingTie = 1e-6;

// Nothing is rounded between the steps. Uses every core, and reads each expert that a row needs once. The shapes of
// `rows` fit the source's valid spec.
LayerResult RunLayer(const LayerSource& source, const LayerRows& rows);

}  // namespace expertd::reference
