// An engine's answer against what was expected: the figures that tests, `expertd verify` and people judge it by.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/layer_source.h"
#include "kernels/reference/layer.h"

namespace expertd::reference {

struct Comparison {
  double relative_error = 0;  // ||got - want|| / ||want|| over all rows; infinite when a difference is not finite
  std::int64_t worst_row = -1;
  double worst_row_error = 0;           // relative to the norm of that row
  std::int64_t routing_mismatches = 0;  // rows that chose other experts or weights, beyond f32 rounding
  std::int64_t first_mismatch = -1;     // row
  std::int64_t routing_ties = 0;        // rows whose choice is within rounding and differs

  bool Within(double tolerance) const { return relative_error <= tolerance && routing_mismatches == 0; }
};

struct Answer {
  std::vector<double> output;          // [n, D]
  std::vector<std::int32_t> topk_ids;  // [n, K], or empty: the routing is not known
  std::vector<double> topk_weights;    // [n, K]
};

// Outputs only: fills the first three fields.
Comparison CompareOutputs(std::int64_t n, absl::Span<const double> got, absl::Span<const double> want);

// One row's choice as sets of (id, weight), unused slots left out: equal ids, and weights within `tolerance` relative.
inline constexpr double kWeightTolerance = 1e-3;
bool SameRouting(absl::Span<const std::int32_t> got_ids, absl::Span<const double> got_weights,
                 absl::Span<const std::int32_t> want_ids, absl::Span<const double> want_weights,
                 double tolerance = kWeightTolerance);

// Runs the double reference over the same rows. Where `rows` is server-routed and the answer's experts differ although
// the reference's margin is within kRoutingTie, the row counts as a tie and its output is compared with the reference
// for the answer's own routing.
Comparison CompareToReference(const LayerSource& source, const LayerRows& rows, const Answer& answer);

}  // namespace expertd::reference
