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

std::int64_t Width(std::size_t elements, std::int64_t n) {
  return n == 0 ? 0 : static_cast<std::int64_t>(elements) / n;
}

// Rows of `rows` under the routing of `routed`, or server-routed when that is null.
LayerRows Pick(const LayerRows& rows, const std::vector<std::int64_t>& which, const Answer* routed) {
  LayerRows some;
  some.n = static_cast<std::int64_t>(which.size());
  some.shared_expert = rows.shared_expert;
  some.k = routed == nullptr ? 0 : Width(routed->topk_ids.size(), rows.n);
  const std::int64_t d = Width(rows.rows.size(), rows.n);
  for (const std::int64_t i : which) {
    const auto x = Row(rows.rows, i, d);
    some.rows.insert(some.rows.end(), x.begin(), x.end());
    if (routed == nullptr) continue;
    const auto ids = Row(routed->topk_ids, i, some.k);
    const auto weights = Row(routed->topk_weights, i, some.k);
    some.topk_ids.insert(some.topk_ids.end(), ids.begin(), ids.end());
    some.topk_weights.insert(some.topk_weights.end(), weights.begin(), weights.end());
  }
  return some;
}

std::vector<std::int64_t> RowsRoutedDifferently(std::int64_t n, const Answer& got, const Answer& want) {
  std::vector<std::int64_t> rows;
  const std::int64_t got_k = Width(got.topk_ids.size(), n), want_k = Width(want.topk_ids.size(), n);
  for (std::int64_t i = 0; i < n; ++i) {
    if (!SameRouting(Row(got.topk_ids, i, got_k), Row(got.topk_weights, i, got_k), Row(want.topk_ids, i, want_k),
                     Row(want.topk_weights, i, want_k))) {
      rows.push_back(i);
    }
  }
  return rows;
}

// Those of `different` that rounding may have decided.
std::vector<std::int64_t> Ties(const LayerSource& source, const LayerRows& rows,
                               const std::vector<std::int64_t>& different) {
  const LayerResult routed = RunLayer(source, Pick(rows, different, nullptr));
  std::vector<std::int64_t> ties;
  for (std::size_t i = 0; i < different.size(); ++i) {
    if (routed.choice_margin[i] < kRoutingTie) ties.push_back(different[i]);
  }
  return ties;
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

Comparison Compare(const LayerRows& rows, const Answer& got, const Answer& want, const LayerSource* source) {
  const bool routed = rows.k == 0 && !got.topk_ids.empty() && !want.topk_ids.empty();
  std::vector<std::int64_t> different, ties;
  if (routed) different = RowsRoutedDifferently(rows.n, got, want);
  if (source != nullptr && !different.empty()) ties = Ties(*source, rows, different);

  std::vector<double> output = want.output;
  if (!ties.empty()) {
    const LayerResult theirs = RunLayer(*source, Pick(rows, ties, &got));
    const std::int64_t d = source->spec().hidden_size;
    for (std::size_t t = 0; t < ties.size(); ++t) {
      std::copy_n(theirs.output.begin() + static_cast<std::int64_t>(t) * d, d, output.begin() + ties[t] * d);
    }
  }
  Comparison c = CompareOutputs(rows.n, got.output, output);
  c.routing_rows = routed ? rows.n : 0;
  c.routing_ties = static_cast<std::int64_t>(ties.size());
  c.routing_mismatches = static_cast<std::int64_t>(different.size() - ties.size());
  for (const std::int64_t row : different) {
    if (c.first_mismatch < 0 && !std::binary_search(ties.begin(), ties.end(), row)) c.first_mismatch = row;
  }
  return c;
}

Comparison CompareToReference(const LayerSource& source, const LayerRows& rows, const Answer& got) {
  LayerResult result = RunLayer(source, rows);
  return Compare(rows, got, {std::move(result.output), std::move(result.topk_ids), std::move(result.topk_weights)},
                 &source);
}

}  // namespace expertd::reference
