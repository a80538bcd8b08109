// ExpertPath::kFp8Rows: against a reference that quantises rows in the same way, and bit for bit against itself.
#include <algorithm>
#include <cstdio>
#include <limits>
#include <set>

#include "kernels/cuda/engine/batch_plan.h"
#include "kernels/cuda/engine/cuda_engine.h"
#include "kernels/cuda/hopper/fused_config.h"
#include "kernels/cuda/host.h"
#include "kernels/reference/layer.h"
#include "tests/contract/harness.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

using contract::ExpectMatchesReference;
using contract::MakePart;
using contract::Part;
using contract::PreRoute;
using contract::RunPart;
using contract::RunParts;
using contract::SlicePart;

class Fp8RowsTest : public HopperGpuTest {
 protected:
  void SetUp() override {
    HopperGpuTest::SetUp();
    if (IsSkipped()) return;
    auto engine = MakeCudaEngine({.workspace_bytes = 256 << 20, .path = ExpertPath::kFp8Rows});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
  void Load(LayerSpec spec) {
    spec.expert_format = spec.shared_format = WeightFormat::kFp8Block128;
    source_ = MakeRandomLayer(spec);
    auto layer = engine_->LoadLayer(*source_);
    ASSERT_TRUE(layer.ok()) << layer.status();
    layer_ = *std::move(layer);
    EXPECT_EQ(layer_->path(), "fp8-rows");
  }
  void ExpectReference(std::vector<Part> parts) {
    EXPERTD_ASSERT_OK(RunParts(*engine_, *layer_, parts));
    for (const Part& part : parts) {
      if (part.input.n() > 0) ExpectMatchesReference(*source_, part, part.input.dtype() == DType::kBF16);
    }
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<LayerSource> source_;
  LayerPtr layer_;
};

// D and F of whole lines of 128 and of a half more; F that ends within a tile of 128 features.
TEST_F(Fp8RowsTest, EverySizeIsTheReference) {
  struct Size {
    std::int64_t d, e, k, f, shared_f;
  };
  for (const Size c :
       Cases<Size>({{256, 4, 2, 256, 0}, {576, 6, 3, 704, 64}, {2048, 8, 2, 768, 0}}, {{192, 4, 2, 128, 64}})) {
    for (const bool on_input : Cases<bool>({false, true}, {false})) {
      LayerSpec spec = SimpleSpec(c.d, c.e, c.k, c.f);
      spec.shared_intermediate_size = c.shared_f;
      spec.expert_bias = c.shared_f > 0;
      spec.routing.weight_on_input = on_input;
      Load(spec);
      for (const std::int64_t n : Cases<std::int64_t>({1, 2, 31, 33, 129, 1000}, {33})) {
        SCOPED_TRACE("N " + std::to_string(n) + " D " + std::to_string(c.d) + " F " + std::to_string(c.f) +
                     (on_input ? " weight on input" : ""));
        std::vector<Part> parts = {MakePart(n, c.d, DType::kBF16, 1), MakePart(n / 2, c.d, DType::kBF16, 2)};
        PreRoute(parts[1], c.e, c.k, 4);
        ExpectReference(std::move(parts));
      }
    }
  }
}

TEST_F(Fp8RowsTest, EveryActivationIsTheReference) {
  for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu,
                                      Activation::kRelu2, Activation::kSwigluOai}) {
    LayerSpec spec = SimpleSpec(/*hidden_size=*/192, /*num_experts=*/6, /*experts_per_token=*/3, /*intermediate=*/128);
    spec.activation = activation;
    Load(spec);
    for (const std::int64_t n : Cases<std::int64_t>({1, 30, 200, 601}, {30})) {
      SCOPED_TRACE("activation " + std::to_string(static_cast<int>(activation)) + " N " + std::to_string(n));
      ExpectReference({MakePart(n, 192, DType::kBF16, 61)});
    }
  }
}

TEST_F(Fp8RowsTest, RowsOfF32AreNotQuantised) {
  Load(SimpleSpec(/*hidden_size=*/192, /*num_experts=*/6, /*experts_per_token=*/3, /*intermediate=*/320));
  ExpectReference({MakePart(33, 192, DType::kF32, 7)});
}

TEST_F(Fp8RowsTest, AllRowsToOneExpertIsTheReference) {
  constexpr std::int64_t kE = 64, kD = 256;
  Load(SimpleSpec(kD, kE, 2, 512));
  for (const std::int64_t n : Cases<std::int64_t>({1, 33, 1000}, {33})) {
    for (const std::int32_t expert : {0, 63, -1}) {
      SCOPED_TRACE("N " + std::to_string(n) + " all to " + std::to_string(expert));
      Part part = MakePart(n, kD, DType::kBF16, 21);
      part.k = 1;
      part.ids.assign(n, expert);
      part.weights.assign(n, 0.75f);
      ExpectReference({std::move(part)});
    }
  }
}

// One expert for all rows: its rows take every width of every tile, whole and in parts.
TEST_F(Fp8RowsTest, ARowHasTheSameBitsInEveryTile) {
  constexpr std::int64_t kD = 576;
  const std::int64_t rows = SmallTests() ? 310 : 1025;
  Load(SimpleSpec(kD, /*num_experts=*/2, /*experts_per_token=*/1, /*intermediate_size=*/512));
  Part all = MakePart(rows, kD, DType::kBF16, 71);
  all.k = 1;
  all.ids.assign(rows, 1);
  all.weights.assign(rows, 0.75f);
  const Rows want = RunPart(*engine_, *layer_, all);
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(RunPart(*engine_, *layer_, all) == want) << "again";
  std::vector<std::int64_t> counts = {511, 512, 513, 1024};
  if (SmallTests()) counts = {1, 40, 300};
  for (std::int64_t n = 1; n <= 300 && !SmallTests(); ++n) counts.push_back(n);
  std::set<cuda::FusedTileId> tiles;
  for (const std::int64_t n : counts) {
    tiles.insert(cuda::ChooseFusedTile({std::max(n, cuda::FilledUp(n)), 2, kD, 512, cuda::WeightCode::kFp8Both}));
    Part part = SlicePart(all, rows - n, n);
    const Rows got = RunPart(*engine_, *layer_, part);
    ASSERT_TRUE(got == want.Slice(rows - n, n)) << n << " rows";
  }
  EXPECT_EQ(tiles.size(), 2u);
}

// A row with NaN or infinity is NaN; its neighbours keep their bits.
TEST_F(Fp8RowsTest, WhatIsNotANumberStaysInItsRow) {
  constexpr std::int64_t kN = 40, kD = 256;
  Load(SimpleSpec(kD, /*num_experts=*/4, /*experts_per_token=*/2, /*intermediate_size=*/256));
  Part clean = MakePart(kN, kD, DType::kBF16, 81);
  PreRoute(clean, 4, 2, 82, /*holes=*/false);
  const Rows want = RunPart(*engine_, *layer_, clean);
  Part poisoned = clean;
  poisoned.input.Set(3, 130, std::numeric_limits<float>::quiet_NaN());
  poisoned.input.Set(20, 0, -std::numeric_limits<float>::infinity());
  const Rows got = RunPart(*engine_, *layer_, poisoned);
  for (std::int64_t row = 0; row < kN; ++row) {
    if (row == 3 || row == 20) {
      for (const double value : got.Slice(row, 1).ToDoubles()) ASSERT_TRUE(std::isnan(value)) << row;
    } else {
      EXPECT_TRUE(got.Slice(row, 1) == want.Slice(row, 1)) << row;
    }
  }
}

// Against rows that are not quantised, for Qwen3-30B-A3B's sizes: what README.md says of it.
TEST_F(Fp8RowsTest, ItsErrorIsWhatIsStated) {
  Load(SimpleSpec(/*hidden_size=*/2048, /*num_experts=*/16, /*experts_per_token=*/8, /*intermediate_size=*/768));
  Part part = MakePart(64, 2048, DType::kBF16, 91);
  const std::vector<double> got = RunPart(*engine_, *layer_, part).ToDoubles();
  reference::LayerRows rows = {.n = 64, .rows = part.input.ToDoubles()};
  const auto error = [&](bool fp8_rows) {
    rows.fp8_rows = fp8_rows;
    return RelativeError(got, reference::RunLayer(*source_, rows).output);
  };
  const double exact = error(false), quantised = error(true);
  std::printf("fp8 rows: %.2e from rows that are not quantised, %.2e from rows that are\n", exact, quantised);
  EXPECT_LE(exact, 5e-2);
  EXPECT_LE(quantised, 1e-2);
}

TEST_F(Fp8RowsTest, OtherWeightsAreRefused) {
  const std::unique_ptr<LayerSource> bf16 = MakeRandomLayer(SimpleSpec(256, 4, 2, 128));
  EXPECT_THAT(engine_->LoadLayer(*bf16).status().message(), ::testing::HasSubstr("fp8-rows"));
  EXPECT_THAT(engine_->info().numerics_id, ::testing::EndsWith("fp8-rows"));
}

}  // namespace
}  // namespace expertd::testing
