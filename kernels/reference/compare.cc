#include "kernels/reference/compare.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

namespace expertd::reference {
namespace {

using Slots = std::vector<std::pair<std::int32_t, double>>;

Slots UsedSlots(absl::Span<const std::int32_t> ids, absl::Span<const double> weights) {
  Slots slots;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] >= 0) slots.emplace_back(ids[i], weights[i]);
  }
  std::sort(slots.begin(), slots.end());
  return slots;
}

double Ratio(double difference, double norm) {
  const double error = std::sqrt(norm > 0 ? difference / norm : difference);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

// `width` elements of row i.
template <class T>
absl::Span<const T> Row(const std::vector<T>& values, std::int64_t i, std::int64_t width) {
  return absl::MakeConstSpan(values).subspan(static_cast<std::size_t>(i * width), static_cast<std::size_t>(width));
}

// The reference's output for these rows under the answer's own routing.
void TakeAnswersRouting(const LayerSource& source, const LayerRows& rows, const Answer& answer,
                        const std::vector<std::int64_t>& which, std::vector<double>& want) {
  const std::int64_t d = source.spec().hidden_size, k = source.spec().experts_per_token;
  LayerRows some;
  some.n = static_cast<std::int64_t>(which.size());
  some.k = k;
  some.shared_expert = rows.shared_expert;
  for (const std::int64_t i : which) {
    const auto x = Row(rows.rows, i, d);
    const auto ids = Row(answer.topk_ids, i, k);
    const auto weights = Row(answer.topk_weights, i, k);
    some.rows.insert(some.rows.end(), x.begin(), x.end());
    some.topk_ids.insert(some.topk_ids.end(), ids.begin(), ids.end());
    some.topk_weights.insert(some.topk_weights.end(), weights.begin(), weights.end());
  }
  const LayerResult result = RunLayer(source, some);
  for (std::size_t r = 0; r < which.size(); ++r) {
    std::copy_n(result.output.begin() + static_cast<std::int64_t>(r) * d, d, want.begin() + which[r] * d);
  }
}

}  // namespace

Comparison CompareOutputs(std::int64_t n, absl::Span<const double> got, absl::Span<const double> want) {
  Comparison c;
  if (n == 0) return c;
  const std::size_t d = want.size() / static_cast<std::size_t>(n);
  double difference = 0, norm = 0;
  for (std::int64_t i = 0; i < n; ++i) {
    double row_difference = 0, row_norm = 0;
    for (std::size_t j = i * d; j < (i + 1) * d; ++j) {
      row_difference += (got[j] - want[j]) * (got[j] - want[j]);
      row_norm += want[j] * want[j];
    }
    const double row_error = Ratio(row_difference, row_norm);
    if (c.worst_row < 0 || row_error > c.worst_row_error) {
      c.worst_row = i;
      c.worst_row_error = row_error;
    }
    difference += row_difference;
    norm += row_norm;
  }
  c.relative_error = Ratio(difference, norm);
  return c;
}

bool SameRouting(absl::Span<const std::int32_t> got_ids, absl::Span<const double> got_weights,
                 absl::Span<const std::int32_t> want_ids, absl::Span<const double> want_weights, double tolerance) {
  const Slots got = UsedSlots(got_ids, got_weights), want = UsedSlots(want_ids, want_weights);
  return std::equal(got.begin(), got.end(), want.begin(), want.end(), [&](const auto& a, const auto& b) {
    return a.first == b.first && std::fabs(a.second - b.second) <= tolerance * std::fabs(b.second) + 1e-6;
  });
}

Comparison CompareToReference(const LayerSource& source, const LayerRows& rows, const Answer& answer) {
  LayerResult reference = RunLayer(source, rows);
  const std::int64_t k = source.spec().experts_per_token;
  std::int64_t mismatches = 0, first_mismatch = -1;
  std::vector<std::int64_t> ties;
  for (std::int64_t i = 0; rows.k == 0 && !answer.topk_ids.empty() && i < rows.n; ++i) {
    if (SameRouting(Row(answer.topk_ids, i, k), Row(answer.topk_weights, i, k), Row(reference.topk_ids, i, k),
                    Row(reference.topk_weights, i, k))) {
      continue;
    }
    if (reference.choice_margin[i] < kRoutingTie) {
      ties.push_back(i);
    } else if (mismatches++ == 0) {
      first_mismatch = i;
    }
  }
  if (!ties.empty()) TakeAnswersRouting(source, rows, answer, ties, reference.output);
  Comparison c = CompareOutputs(rows.n, answer.output, reference.output);
  c.routing_mismatches = mismatches;
  c.first_mismatch = first_mismatch;
  c.routing_ties = static_cast<std::int64_t>(ties.size());
  return c;
}

}  // namespace expertd::reference
