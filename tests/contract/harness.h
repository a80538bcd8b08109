// What the contract tests have in common: an engine under test, batches that own their memory, and the comparison with
// the double reference.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/engine.h"
#include "kernels/layer_source.h"
#include "tests/contract/engines.h"
#include "tests/support/random.h"
#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd::contract {

using testing::MakeRandomLayer;
using testing::Random;
using testing::Rows;
using testing::SimpleSpec;
using testing::WeightLayout;

// A segment and all the memory that it points to.
struct Part {
  Rows input;
  DType output_dtype = DType::kBF16;
  bool shared_expert = true;
  std::int64_t k = 0;  // pre-routed when > 0
  std::vector<std::int32_t> ids;
  std::vector<float> weights;

  // Written by RunParts, poisoned before.
  Rows output;
  std::vector<std::int32_t> routed_ids;
  std::vector<float> routed_weights;
};

// Rows of one dtype in and out.
Part MakePart(std::int64_t n, std::int64_t d, DType dtype, std::uint64_t seed);
// Gives a part distinct random experts for each row, and weights; one slot in eight unused when `holes`.
void PreRoute(Part& part, std::int64_t num_experts, std::int64_t k, std::uint64_t seed, bool holes = true);
// Rows [first, first + count) with their routing.
Part SlicePart(const Part& part, std::int64_t first, std::int64_t count);

absl::Status RunParts(Engine& engine, const Layer& layer, std::vector<Part>& parts);
// The same for a single one; returns its output.
Rows RunPart(Engine& engine, const Layer& layer, Part& part);

// What is left of 16 or 24 bits after a layer's sums: by the widest rounding on the way.
double Tolerance(const Part& part);
// Output and, when server-routed, routing; with `fp8_rows`, of a reference that quantises rows, and
// twice the tolerance: sums of e4m3 have fewer bits, so that some results are rounded to another code.
void ExpectMatchesReference(const LayerSource& source, const Part& part, bool fp8_rows = false);

class EngineTest : public ::testing::TestWithParam<EngineCase> {
 protected:
  void SetUp() override { engine_ = Make({}); }
  std::unique_ptr<Engine> Make(const EngineOptions& options) const;
  LayerPtr Load(const LayerSource& source) const;
  Engine& engine() const { return *engine_; }

 private:
  std::unique_ptr<Engine> engine_;
};

}  // namespace expertd::contract

// Runs the test suite `suite` (an alias or subclass of EngineTest) against `engines`.
#define EXPERTD_ENGINE_SUITE(suite, engines) \
  INSTANTIATE_TEST_SUITE_P(                  \
      , suite, ::testing::ValuesIn(engines), \
      [](const ::testing::TestParamInfo<::expertd::contract::EngineCase>& info) { return info.param.name; })
