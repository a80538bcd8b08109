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
  std::int64_t routing_rows = 0;        // rows whose routing was compared
  std::int64_t routing_mismatches = 0;  // of those: rows that chose other experts or weights, beyond f32 rounding
  std::int64_t first_mismatch = -1;     // row
  std::int64_t routing_ties = 0;        // rows whose choice is within rounding and differs

  bool Within(double tolerance) const { return relative_error <= tolerance && routing_mismatches == 0; }
};

// What somebody computed for some rows.
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

// Outputs, and routings where both answers have them. Where a server-routed row's routing differs, the double reference
// over `source` decides: a row whose margin is within kRoutingTie counts as a tie, and its output is compared with the
// reference's for the routing that `got` took. Without a source every difference is a mismatch.
Comparison Compare(const LayerRows& rows, const Answer& got, const Answer& want, const LayerSource* source);

// The same against the double reference itself.
Comparison CompareToReference(const LayerSource& source, const LayerRows& rows, const Answer& got);

}  // namespace expertd::reference
