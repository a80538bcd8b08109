#include "kernels/reference/layer.h"

#include <algorithm>
#include <map>
#include <utility>

#include "kernels/reference/fp8_rows.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/parallel.h"

namespace expertd::reference {
namespace {

// A row of a weight matrix, decoded.
void Decode(const WeightView& weight, std::int64_t row, std::vector<double>& values) {
  values.resize(static_cast<std::size_t>(weight.in));
  for (std::int64_t i = 0; i < weight.in; ++i) values[i] = weight.At(row, i);
}

// Four sums, so that one addition does not wait for the last.
double Dot(const std::vector<double>& a, const double* b) {
  double sums[4] = {};
  for (std::size_t i = 0; i < a.size(); ++i) sums[i % 4] += a[i] * b[i];
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

double At(const VectorView& vector, std::int64_t i) { return vector.empty() ? 0.0 : vector.At(i); }

// down(act(gate(x), up(x))) for m rows x [m, D]: [m, D]. Goes through the weights once, row by row.
std::vector<double> RunExpert(const LayerSpec& spec, const ExpertWeights& w, std::int64_t m, std::vector<double> x,
                              bool fp8_rows) {
  const GatedActivation activation{spec.activation, spec.swiglu_limit, spec.swiglu_alpha};
  const std::int64_t d = spec.hidden_size, f = w.gate.out;
  std::vector<double> gate_row, up_row, down_row;
  std::vector<double> hidden(static_cast<std::size_t>(m * f)), out(static_cast<std::size_t>(m * d));
  if (fp8_rows) QuantiseFp8Rows(d, x);
  for (std::int64_t j = 0; j < f; ++j) {
    Decode(w.gate, j, gate_row);
    Decode(w.up, j, up_row);
    for (std::int64_t r = 0; r < m; ++r) {
      hidden[r * f + j] = activation(Dot(gate_row, &x[r * d]) + At(w.gate_bias, j),  //
                                     Dot(up_row, &x[r * d]) + At(w.up_bias, j));
    }
  }
  if (fp8_rows) QuantiseFp8Rows(f, hidden);
  for (std::int64_t j = 0; j < d; ++j) {
    Decode(w.down, j, down_row);
    for (std::int64_t r = 0; r < m; ++r) out[r * d + j] = Dot(down_row, &hidden[r * f]) + At(w.down_bias, j);
  }
  return out;
}

std::vector<double> ToVector(const VectorView& view) {
  std::vector<double> values;
  for (std::int64_t i = 0; i < (view.empty() ? 0 : view.size); ++i) values.push_back(view.At(i));
  return values;
}

// Fills ids, weights and margins by the layer's own router.
void RouteRows(const LayerSource& source, const LayerRows& rows, LayerResult& result) {
  const LayerSpec& spec = source.spec();
  const RouterWeights router = source.router();
  const std::int64_t e = spec.num_experts, d = spec.hidden_size;
  std::vector<double> logits(static_cast<std::size_t>(rows.n * e));
  ParallelFor(e, [&](std::int64_t expert) {
    std::vector<double> weight;
    Decode(router.weight, expert, weight);
    for (std::int64_t i = 0; i < rows.n; ++i) {
      logits[i * e + expert] = Dot(weight, &rows.rows[i * d]) + At(router.bias, expert);
    }
  });
  const std::vector<double> correction_bias = ToVector(router.correction_bias);
  for (std::int64_t i = 0; i < rows.n; ++i) {
    const Routing routing = Route(spec.routing, spec.experts_per_token,
                                  {logits.begin() + i * e, logits.begin() + (i + 1) * e}, correction_bias);
    result.topk_ids.insert(result.topk_ids.end(), routing.ids.begin(), routing.ids.end());
    result.topk_weights.insert(result.topk_weights.end(), routing.weights.begin(), routing.weights.end());
    result.choice_margin.push_back(routing.margin);
  }
}

void AddSharedExpert(const LayerSource& source, const LayerRows& rows, std::vector<double>& output) {
  const LayerSpec& spec = source.spec();
  const std::int64_t d = spec.hidden_size;
  const std::vector<double> gate = spec.shared_gated ? ToVector(source.shared_gate()) : std::vector<double>();
  const ExpertWeights weights = source.shared();
  constexpr std::int64_t kChunk = 16;  // rows that share one pass over the weights
  ParallelFor((rows.n + kChunk - 1) / kChunk, [&](std::int64_t chunk) {
    const std::int64_t first = chunk * kChunk, count = std::min(kChunk, rows.n - first);
    const double* const x = &rows.rows[first * d];
    const std::vector<double> y = RunExpert(spec, weights, count, {x, x + count * d}, rows.fp8_rows);
    for (std::int64_t i = 0; i < count; ++i) {
      const double factor = gate.empty() ? 1.0 : Sigmoid(Dot(gate, x + i * d));
      for (std::int64_t j = 0; j < d; ++j) output[(first + i) * d + j] += factor * y[i * d + j];
    }
  });
}

}  // namespace

LayerResult RunLayer(const LayerSource& source, const LayerRows& rows) {
  const LayerSpec& spec = source.spec();
  const std::int64_t d = spec.hidden_size;
  const std::int64_t k = rows.k > 0 ? rows.k : spec.experts_per_token;
  LayerResult result;
  if (rows.k > 0) {
    result.topk_ids = rows.topk_ids;
    result.topk_weights = rows.topk_weights;
  } else {
    RouteRows(source, rows, result);
  }

  // Each held expert that is hit runs over its slots' rows; slots keep their outputs until they are summed in order.
  std::map<std::int64_t, std::vector<std::int64_t>> slots_of;
  std::vector<std::int32_t> slot_row(result.topk_ids.size(), -1);
  for (std::size_t s = 0; s < slot_row.size(); ++s) {
    const std::int64_t held = result.topk_ids[s] - spec.first_expert;
    if (result.topk_ids[s] < 0 || held < 0 || held >= spec.held_experts) continue;
    slot_row[s] = static_cast<std::int32_t>(s);
    slots_of[result.topk_ids[s]].push_back(static_cast<std::int64_t>(s));
  }
  const std::vector<std::pair<std::int64_t, std::vector<std::int64_t>>> jobs(slots_of.begin(), slots_of.end());
  const bool on_input = spec.routing.weight_on_input;
  std::vector<double> slot_out(slot_row.size() * static_cast<std::size_t>(d));
  ParallelFor(static_cast<std::int64_t>(jobs.size()), [&](std::int64_t job) {
    const auto& [expert, slots] = jobs[job];
    std::vector<double> x;
    for (const std::int64_t s : slots) {
      const double factor = on_input ? result.topk_weights[s] : 1.0;
      for (std::int64_t j = 0; j < d; ++j) x.push_back(factor * rows.rows[s / k * d + j]);
    }
    const std::vector<double> y =
        RunExpert(spec, source.expert(expert), static_cast<std::int64_t>(slots.size()), std::move(x), rows.fp8_rows);
    source.Release(expert);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      std::copy_n(y.begin() + static_cast<std::int64_t>(i) * d, d, slot_out.begin() + slots[i] * d);
    }
  });

  result.output.resize(static_cast<std::size_t>(rows.n * d));
  const In weights = on_input ? In(static_cast<const double*>(nullptr)) : In(result.topk_weights);
  GatherReduce(rows.n, d, k, slot_out, slot_row.data(), weights, result.output);
  if (rows.shared_expert && spec.shared_intermediate_size > 0) AddSharedExpert(source, rows, result.output);
  return result;
}

}  // namespace expertd::reference
