#include "tests/contract/harness.h"

#include <algorithm>
#include <numeric>

#include "kernels/reference/compare.h"

namespace expertd::contract {

Part MakePart(std::int64_t n, std::int64_t d, DType dtype, std::uint64_t seed) {
  Part part;
  part.input = Rows::Random(n, d, dtype, seed);
  part.output_dtype = dtype;
  return part;
}

void PreRoute(Part& part, std::int64_t num_experts, std::int64_t k, std::uint64_t seed, bool holes) {
  part.k = k;
  part.ids.clear();
  part.weights.clear();
  std::vector<std::int32_t> experts(num_experts);
  std::iota(experts.begin(), experts.end(), 0);
  for (std::int64_t i = 0; i < part.input.n(); ++i) {
    Random random(seed, static_cast<std::uint64_t>(i));
    for (std::int64_t j = 0; j < k; ++j) {
      std::int32_t id = -1;
      if (j < num_experts) {
        std::swap(experts[j], experts[j + random.Below(num_experts - j)]);
        id = experts[j];
      }
      part.ids.push_back(holes && random.Below(8) == 0 ? -1 : id);
      part.weights.push_back(random.Normal());
    }
  }
}

Part SlicePart(const Part& part, std::int64_t first, std::int64_t count) {
  Part slice;
  slice.input = part.input.Slice(first, count);
  slice.output_dtype = part.output_dtype;
  slice.shared_expert = part.shared_expert;
  slice.k = part.k;
  slice.ids.assign(part.ids.begin() + first * part.k, part.ids.begin() + (first + count) * part.k);
  slice.weights.assign(part.weights.begin() + first * part.k, part.weights.begin() + (first + count) * part.k);
  return slice;
}

absl::Status RunParts(Engine& engine, const Layer& layer, std::vector<Part>& parts) {
  const LayerSpec& spec = layer.spec();
  std::vector<Segment> segments;
  for (Part& part : parts) {
    const std::int64_t n = part.input.n();
    part.output = Rows::Poisoned(n, spec.hidden_size, part.output_dtype);
    part.routed_ids.assign(part.k > 0 ? 0 : n * spec.experts_per_token, -77);
    part.routed_weights.assign(part.routed_ids.size(), -77.0f);
    segments.push_back({.rows = n,
                        .input = part.input.row(0),
                        .output = part.output.row(0),
                        .input_dtype = part.input.dtype(),
                        .output_dtype = part.output_dtype,
                        .shared_expert = part.shared_expert,
                        .k = part.k,
                        .topk_ids = part.ids.data(),
                        .topk_weights = part.weights.data(),
                        .routed_ids = part.k > 0 ? nullptr : part.routed_ids.data(),
                        .routed_weights = part.k > 0 ? nullptr : part.routed_weights.data()});
  }
  StageTimes times;
  return engine.Run(layer, segments, &times);
}

Rows RunPart(Engine& engine, const Layer& layer, Part& part) {
  std::vector<Part> parts = {std::move(part)};
  EXPECT_EQ(RunParts(engine, layer, parts), absl::OkStatus());
  part = std::move(parts[0]);
  return part.output;
}

double Tolerance(const Part& part) {
  return part.input.dtype() == DType::kF32 && part.output_dtype == DType::kF32 ? 1e-5 : 5e-3;
}

void ExpectMatchesReference(const LayerSource& source, const Part& part, bool fp8_rows) {
  reference::LayerRows rows;
  rows.n = part.input.n();
  rows.rows = part.input.ToDoubles();
  rows.shared_expert = part.shared_expert;
  rows.fp8_rows = fp8_rows;
  rows.k = part.k;
  rows.topk_ids = part.ids;
  rows.topk_weights.assign(part.weights.begin(), part.weights.end());
  const reference::Answer answer{
      part.output.ToDoubles(), part.routed_ids, {part.routed_weights.begin(), part.routed_weights.end()}};
  const reference::Comparison c = reference::CompareToReference(source, rows, answer);
  EXPECT_LE(c.relative_error, Tolerance(part) * (fp8_rows ? 2 : 1))
      << "worst row " << c.worst_row << ": " << c.worst_row_error;
  EXPECT_EQ(c.routing_mismatches, 0) << "first at row " << c.first_mismatch;
}

std::unique_ptr<Engine> EngineTest::Make(const EngineOptions& options) const {
  auto engine = GetParam().make(options);
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

LayerPtr EngineTest::Load(const LayerSource& source) const {
  auto layer = engine_->LoadLayer(source);
  EXPECT_TRUE(layer.ok()) << layer.status();
  return layer.ok() ? *std::move(layer) : nullptr;
}

}  // namespace expertd::contract
