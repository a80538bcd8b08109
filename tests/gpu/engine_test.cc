// The engine on a device: shapes that the contract suite (tests/contract) does not enumerate, and one engine for each
// device of a machine. Its small cases are one of every kernel of the engine x row type x tail, for compute-sanitizer.
#include <algorithm>
#include <set>
#include <thread>

#include "kernels/cuda/engine/batch_plan.h"
#include "kernels/cuda/engine/cuda_engine.h"
#include "kernels/cuda/hopper/fused_config.h"
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

constexpr std::int64_t kWorkspaceBytes = 256 << 20;

std::unique_ptr<Engine> MakeEngineOf(int device) {
  auto engine = MakeCudaEngine({.device = device, .workspace_bytes = kWorkspaceBytes});
  EXPECT_TRUE(engine.ok()) << engine.status();
  return engine.ok() ? *std::move(engine) : nullptr;
}

class EngineGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    engine_ = MakeEngineOf(0);
    ASSERT_NE(engine_, nullptr);
  }
  void Load(const LayerSpec& spec) {
    source_ = MakeRandomLayer(spec);
    auto layer = engine_->LoadLayer(*source_);
    ASSERT_TRUE(layer.ok()) << layer.status();
    layer_ = *std::move(layer);
  }
  // One batch, and every part of it against the reference.
  void ExpectReference(std::vector<Part> parts) {
    EXPERTD_ASSERT_OK(RunParts(*engine_, *layer_, parts));
    for (const Part& part : parts) {
      if (part.input.n() > 0) ExpectMatchesReference(*source_, part);
    }
  }

  std::unique_ptr<Engine> engine_;
  std::unique_ptr<LayerSource> source_;
  LayerPtr layer_;
};

struct Format {
  WeightFormat format;
  std::int64_t d, f, shared_f;
  bool bias;
};
// Every way to multiply: tensor cores and plain arithmetic, each weight code, widths that end within a tile. D = 2880
// and F = 256 x 3 are of released models' kind.
std::vector<Format> Formats() {
  return Cases<Format>({{WeightFormat::kBF16, 160, 72, 40, false},
                        {WeightFormat::kBF16, 33, 17, 9, true},
                        {WeightFormat::kBF16, 512, 768, 0, false},
                        {WeightFormat::kBF16, 2880, 64, 64, true},
                        {WeightFormat::kF16, 72, 40, 24, false},
                        {WeightFormat::kF32, 72, 41, 24, true},
                        {WeightFormat::kFp8Block128, 160, 136, 40, false},
                        {WeightFormat::kFp8Block128, 384, 256, 128, true},
                        {WeightFormat::kMxfp4, 96, 64, 32, true},
                        {WeightFormat::kMxfp4, 256, 384, 0, false},
                        {WeightFormat::kFp8Block128, 512, 704, 64, true},
                        {WeightFormat::kFp8Block128, 576, 512, 0, false},
                        {WeightFormat::kMxfp4, 512, 576, 64, true},
                        {WeightFormat::kMxfp4, 2880, 512, 0, false}},
                       {{WeightFormat::kBF16, 160, 72, 40, false},
                        {WeightFormat::kBF16, 256, 128, 0, false},
                        {WeightFormat::kBF16, 33, 17, 9, true},
                        {WeightFormat::kF16, 72, 40, 24, false},
                        {WeightFormat::kF32, 72, 41, 24, true},
                        {WeightFormat::kFp8Block128, 160, 136, 40, false},
                        {WeightFormat::kFp8Block128, 192, 128, 0, true},
                        {WeightFormat::kMxfp4, 96, 64, 32, true},
                        {WeightFormat::kMxfp4, 192, 128, 0, true}});
}

TEST_F(EngineGpuTest, EveryFormatAndRowTypeIsTheReference) {
  for (const Format& format : Formats()) {
    LayerSpec spec = SimpleSpec(format.d, /*num_experts=*/6, /*experts_per_token=*/3, format.f);
    spec.expert_format = spec.shared_format = format.format;
    spec.expert_bias = format.bias;
    spec.shared_intermediate_size = format.shared_f;
    spec.shared_gated = format.shared_f > 0;
    Load(spec);
    for (const bool on_input : Cases<bool>({false, true}, {false})) {
      spec.routing.weight_on_input = on_input;
      if (on_input) Load(spec);
      SCOPED_TRACE(std::string(WeightFormatName(format.format)) + " D " + std::to_string(format.d) + " F " +
                   std::to_string(format.f) + (on_input ? " weight on input" : "") + " path " +
                   std::string(layer_->path()));
      for (const DType dtype : kRowTypes) {
        // A segment that goes through the staging buffer, one that is copied from where it lies, one with its routing.
        const std::int64_t large = (32 << 10) / (format.d * 4) + 1;
        std::vector<Part> parts = {MakePart(5, format.d, dtype, 1), MakePart(large, format.d, dtype, 2),
                                   MakePart(9, format.d, dtype, 3)};
        PreRoute(parts[2], spec.num_experts, 4, 4);
        ExpectReference(std::move(parts));
      }
    }
  }
}

// Hopper's fused kernel on codes: every activation is compiled into it.
TEST_F(EngineGpuTest, EveryActivationOfCodesIsTheReference) {
  for (const WeightFormat format : {WeightFormat::kFp8Block128, WeightFormat::kMxfp4}) {
    for (const Activation activation : {Activation::kSilu, Activation::kGelu, Activation::kGeluTanh, Activation::kRelu,
                                        Activation::kRelu2, Activation::kSwigluOai}) {
      LayerSpec spec =
          SimpleSpec(/*hidden_size=*/192, /*num_experts=*/6, /*experts_per_token=*/3, /*intermediate=*/128);
      spec.expert_format = format;
      spec.activation = activation;
      spec.expert_bias = activation == Activation::kSwigluOai;
      Load(spec);
      for (const std::int64_t n : Cases<std::int64_t>({1, 30, 200, 601}, {30})) {
        SCOPED_TRACE(std::string(WeightFormatName(format)) + " activation " +
                     std::to_string(static_cast<int>(activation)) + " N " + std::to_string(n));
        ExpectReference({MakePart(n, 192, DType::kBF16, 61)});
      }
    }
  }
}

// One expert for all rows: its rows take every width of every tile, whole and in parts.
TEST_F(EngineGpuTest, ARowOfAPackedLayerHasTheSameBitsInEveryTile) {
  constexpr std::int64_t kD = 576, kF = 512;
  const std::int64_t rows = SmallTests() ? 310 : 1025;
  struct Format {
    WeightFormat format;
    cuda::WeightCode code;
    std::size_t tiles, small_tiles;  // that the counts of rows lead to
  };
  const Format formats[] = {{WeightFormat::kBF16, cuda::WeightCode::kBF16, 3, 3},
                            {WeightFormat::kFp8Block128, cuda::WeightCode::kFp8, 4, 4},
                            {WeightFormat::kMxfp4, cuda::WeightCode::kMxfp4, 4, 3}};
  for (const auto& [format, code, all_tiles, small_tiles] : formats) {
    LayerSpec spec = SimpleSpec(kD, /*num_experts=*/4, /*experts_per_token=*/1, kF);
    spec.expert_format = format;
    Load(spec);
    Part all = MakePart(rows, kD, DType::kBF16, 71);
    all.k = 1;
    all.ids.assign(rows, 1);
    all.weights.assign(rows, 0.75f);
    const Rows want = RunPart(*engine_, *layer_, all);
    for (int i = 0; i < 5; ++i)
      EXPECT_TRUE(RunPart(*engine_, *layer_, all) == want) << WeightFormatName(format) << " again";
    std::vector<std::int64_t> counts = {511, 512, 513, 1024};
    if (SmallTests()) counts = {1, 18, 40, 300};
    for (std::int64_t n = 1; n <= 300 && !SmallTests(); ++n) counts.push_back(n);
    std::set<cuda::FusedTileId> tiles = {cuda::ChooseFusedTile({rows, 4, kD, kF, code})};
    for (const std::int64_t n : counts) {
      tiles.insert(cuda::ChooseFusedTile({std::max(n, cuda::FilledUp(n)), 4, kD, kF, code}));
      Part part = SlicePart(all, rows - n, n);
      const Rows got = RunPart(*engine_, *layer_, part);
      ASSERT_TRUE(got == want.Slice(rows - n, n)) << WeightFormatName(format) << ' ' << n << " rows";
    }
    EXPECT_EQ(tiles.size(), SmallTests() ? small_tiles : all_tiles) << WeightFormatName(format);
  }
}

// Chunks of one size are enqueued once, then recorded, then replayed, with the rows, slots and options of each.
TEST_F(EngineGpuTest, ReplaysAreTheReference) {
  constexpr std::int64_t kD = 192;
  LayerSpec spec = SimpleSpec(kD, /*num_experts=*/6, /*experts_per_token=*/3, /*intermediate=*/128);
  spec.shared_intermediate_size = 64;
  EXPECT_EQ(engine_->graphs(), 0);
  for (int layer = 0; layer < 2; ++layer) {  // the second one's graphs are its own
    Load(spec);
    std::uint64_t seed = 81;
    for (const std::int64_t n : Cases<std::int64_t>({1, 2, 3, 4, 5, 15, 16, 17, 64, 129, 255, 256, 257}, {3})) {
      for (const DType dtype : kRowTypes) {
        for (int i = 0; i < 6; ++i) {
          std::vector<Part> parts = {MakePart(n - n / 3, kD, dtype, ++seed)};
          if (n / 3 > 0) parts.push_back(MakePart(n / 3, kD, dtype, ++seed));
          for (Part& part : parts) {
            part.shared_expert = i % 3 > 0;
            if (i % 2 > 0) PreRoute(part, spec.num_experts, 3, ++seed);
          }
          SCOPED_TRACE("N " + std::to_string(n) + " batch " + std::to_string(i));
          ExpectReference(std::move(parts));
        }
      }
    }
  }
  EXPECT_GT(engine_->graphs(), 0);
}

struct Experts {
  std::int64_t e, k;
};

TEST_F(EngineGpuTest, EverySizeIsTheReference) {
  for (const Experts c :
       Cases<Experts>({{1, 1}, {8, 2}, {60, 4}, {64, 8}, {128, 8}, {160, 6}, {256, 8}, {384, 16}}, {{60, 4}})) {
    Load(SimpleSpec(/*hidden_size=*/72, c.e, c.k, /*intermediate_size=*/40));
    for (const std::int64_t n : RowCounts()) {
      const DType dtype = n % 3 == 0 ? DType::kF32 : DType::kBF16;
      SCOPED_TRACE("N " + std::to_string(n) + " E " + std::to_string(c.e) + " K " + std::to_string(c.k) + " " +
                   std::string(DTypeName(dtype)));
      ExpectReference({MakePart(n, 72, dtype, 11)});
    }
  }
}

// Where all rows meet in one expert and the others have none, where a row has every expert, where no slot is used.
TEST_F(EngineGpuTest, UnevenRoutingIsTheReference) {
  constexpr std::int64_t kE = 64, kD = 72;
  Load(SimpleSpec(kD, kE, 2, 40));
  for (const DType dtype : kRowTypes) {
    for (const std::int64_t n : Cases<std::int64_t>({1, 33, 1000, 4097}, {33})) {
      for (const std::int32_t expert : {0, 63, -1}) {
        SCOPED_TRACE("N " + std::to_string(n) + " all to " + std::to_string(expert));
        Part part = MakePart(n, kD, dtype, 21);
        part.k = 1;
        part.ids.assign(n, expert);
        part.weights.assign(n, 0.75f);
        ExpectReference({std::move(part)});
      }
    }
    Part all = MakePart(3, kD, dtype, 22);
    PreRoute(all, kE, kE, 23, /*holes=*/false);
    ExpectReference({std::move(all)});
  }
}

// Where cuBLAS is installed; elsewhere a visible skip.
class BatchedEngineGpuTest : public EngineGpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    auto engine = MakeCudaEngine({.workspace_bytes = kWorkspaceBytes, .path = ExpertPath::kBatched});
    if (absl::IsUnavailable(engine.status())) GTEST_SKIP() << engine.status();
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }
};

TEST_F(BatchedEngineGpuTest, EveryRowTypeIsTheReference) {
  EXPECT_THAT(engine_->info().numerics_id, ::testing::HasSubstr("not-invariant"));
  for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kF32}) {
    for (const bool on_input : {false, true}) {
      LayerSpec spec = SimpleSpec(/*hidden_size=*/72, /*num_experts=*/6, /*experts_per_token=*/3, /*intermediate=*/40);
      spec.expert_format = format;
      spec.expert_bias = true;
      spec.routing.weight_on_input = on_input;
      spec.shared_intermediate_size = 24;
      Load(spec);
      EXPECT_EQ(layer_->path(), "batched");
      for (const DType dtype : kRowTypes) {
        SCOPED_TRACE(std::string(WeightFormatName(format)) + " rows " + std::string(DTypeName(dtype)));
        std::vector<Part> parts = {MakePart(33, 72, dtype, 1), MakePart(200, 72, dtype, 2), MakePart(1, 72, dtype, 3)};
        PreRoute(parts[1], spec.num_experts, 4, 4);
        ExpectReference(std::move(parts));
      }
    }
  }
}

// All rows at one expert of many: more than the memory holds at once (113 rows), so in passes, and none is dropped.
TEST_F(BatchedEngineGpuTest, MoreRowsThanFitAreDoneInPasses) {
  const std::int64_t n = SmallTests() ? 130 : 3000;
  Load(SimpleSpec(/*hidden_size=*/512, /*num_experts=*/64, /*experts_per_token=*/1, /*intermediate=*/256));
  Part part = MakePart(n, 512, DType::kBF16, 41);
  part.k = 1;
  part.ids.assign(n, 17);
  part.weights.assign(n, 0.5f);
  ExpectReference({std::move(part)});
}

TEST_F(BatchedEngineGpuTest, QuantisedWeightsAreRefused) {
  LayerSpec spec = SimpleSpec(128, 4, 2, 128);
  spec.expert_format = WeightFormat::kFp8Block128;
  const absl::Status status = engine_->LoadLayer(*MakeRandomLayer(spec)).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << status;
  EXPECT_THAT(std::string(status.message()), ::testing::HasSubstr("path: batched"));
}

// One engine for each device, all at work at once.
TEST(DevicesGpuTest, EveryDeviceGivesTheSameBits) {
  int count = 0;
  if (cudaGetDeviceCount(&count) != cudaSuccess || count < 2) GTEST_SKIP() << "fewer than two CUDA devices";
  const auto source = MakeRandomLayer(SimpleSpec(256, 16, 4, 128));
  std::vector<std::unique_ptr<Engine>> engines;
  std::vector<LayerPtr> layers;
  std::vector<Part> parts;
  for (int device = 0; device < count; ++device) {
    engines.push_back(MakeEngineOf(device));
    ASSERT_NE(engines.back(), nullptr);
    auto layer = engines.back()->LoadLayer(*source);
    ASSERT_TRUE(layer.ok()) << layer.status();
    layers.push_back(*std::move(layer));
    parts.push_back(MakePart(200, 256, DType::kBF16, 31));
  }
  std::vector<std::thread> threads;
  for (int device = 0; device < count; ++device) {
    threads.emplace_back([&, device] {
      for (int i = 0; i < 20; ++i) RunPart(*engines[device], *layers[device], parts[device]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (int device = 0; device < count; ++device) {
    SCOPED_TRACE(engines[device]->info().description);
    ExpectMatchesReference(*source, parts[device]);
    if (engines[device]->info().numerics_id == engines[0]->info().numerics_id) {
      EXPECT_TRUE(parts[device].output == parts[0].output);
    }
  }
  EXPECT_TRUE(absl::IsFailedPrecondition(RunParts(*engines[1], *layers[0], parts))) << "a layer of another device";
}

}  // namespace
}  // namespace expertd::testing
