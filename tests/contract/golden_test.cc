// Every golden checkpoint, from its files on disk through the loader and each engine, against the outputs of the
// model's own code.
#include <filesystem>
#include <set>

#include "kernels/checkpoint/checkpoint.h"
#include "kernels/reference/compare.h"
#include "kernels/reference/io_file.h"
#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using GoldenTest = EngineTest;
EXPERTD_ENGINE_SUITE(GoldenTest);

std::set<std::filesystem::path> Cases() {
  std::set<std::filesystem::path> cases;
  for (const auto& entry : std::filesystem::directory_iterator(EXPERTD_TEST_DATA "/golden")) {
    if (entry.is_directory()) cases.insert(entry.path());
  }
  return cases;
}

// The case's rows of the given type, through the engine, against the file.
void ExpectGolden(Engine& engine, const Layer& layer, const reference::IoFile& io, const reference::IoLayer& want,
                  DType dtype) {
  const std::int64_t d = layer.spec().hidden_size, k = layer.spec().experts_per_token;
  Part part;
  part.input = Rows::Poisoned(io.n, d, dtype);
  for (std::int64_t i = 0; i < io.n * d; ++i) part.input.Set(i / d, i % d, static_cast<float>(io.rows[i]));
  part.output_dtype = DType::kF32;
  const Rows output = RunPart(engine, layer, part);
  const reference::Comparison c = reference::CompareOutputs(io.n, output.ToDoubles(), want.output);
  EXPECT_LE(c.relative_error, dtype == DType::kF32 ? 1e-5 : 5e-3) << "worst row " << c.worst_row;
  ASSERT_TRUE(want.topk_ids.empty() || want.k == k) << want.k;
  const std::vector<double> weights(part.routed_weights.begin(), part.routed_weights.end());
  for (std::int64_t i = 0; !want.topk_ids.empty() && i < io.n; ++i) {
    EXPECT_TRUE(reference::SameRouting(
        {&part.routed_ids[i * k], static_cast<std::size_t>(k)}, {&weights[i * k], static_cast<std::size_t>(k)},
        {&want.topk_ids[i * k], static_cast<std::size_t>(k)}, {&want.topk_weights[i * k], static_cast<std::size_t>(k)}))
        << "row " << i;
  }
}

TEST_P(GoldenTest, EveryCase) {
  ASSERT_GE(Cases().size(), 18u);
  for (const std::filesystem::path& dir : Cases()) {
    SCOPED_TRACE(dir.filename().string());
    const auto checkpoint = Checkpoint::Open(dir.string());
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.status();
    ASSERT_FALSE((*checkpoint)->layers().empty());
    const auto io = reference::ReadIoFile((dir / "io.safetensors").string());
    ASSERT_TRUE(io.ok()) << io.status();
    ASSERT_EQ(io->layers.size(), (*checkpoint)->layers().size());
    for (const LayerSpec& spec : (*checkpoint)->layers()) {
      const auto want = io->layers.find(spec.layer);
      ASSERT_NE(want, io->layers.end()) << spec.layer;
      const auto source = (*checkpoint)->OpenLayer(spec.layer);
      ASSERT_TRUE(source.ok()) << source.status();
      const LayerPtr layer = Load(**source);
      ASSERT_NE(layer, nullptr);
      ExpectGolden(engine(), *layer, *io, want->second, DType::kBF16);
      ExpectGolden(engine(), *layer, *io, want->second, DType::kF32);
    }
  }
}

}  // namespace
}  // namespace expertd::contract
