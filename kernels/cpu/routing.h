// From router logits to the experts of a row.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/layer_spec.h"

namespace expertd::cpu {

// Room for the scores of one row, kept by a thread between rows.
struct RoutingScratch {
  std::vector<double> score, choice;
};

// Score, choose, weigh, as layer_spec.h says; best choice first, ties to the lower id. Scores are computed in double
// from f32 logits, so that distinct logits do not become ties. Where any score is NaN, the ids are 0..K-1 and the
// weights NaN.
//   logits           [E]   router bias already added
//   correction_bias  [E]   or null
//   ids, weights     [K]
void RouteRow(const LayerSpec& spec, const float* logits, const float* correction_bias, RoutingScratch& scratch,
              std::int32_t* ids, float* weights);

}  // namespace expertd::cpu
