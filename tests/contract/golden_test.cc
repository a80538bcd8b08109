// Every golden checkpoint, from its files on disk through the loader and each engine, against the outputs of the
// model's own code.
#include <cstdlib>
#include <filesystem>
#include <set>

#include "kernels/checkpoint/checkpoint.h"
#include "kernels/reference/compare.h"
#include "kernels/reference/io_file.h"
#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using GoldenTest = EngineTest;
EXPERTD_ENGINE_SUITE(GoldenTest, ReferenceAndEngines());

// The environment names another place where the tests run away from their sources (tests/gpu/bundle.sh).
std::set<std::filesystem::path> Cases() {
  const char* const moved = std::getenv("EXPERTD_TEST_DATA");
  std::set<std::filesystem::path> cases;
  for (const auto& entry :
       std::filesystem::directory_iterator(std::string(moved != nullptr ? moved : EXPERTD_TEST_DATA) + "/golden")) {
    if (entry.is_directory()) cases.insert(entry.path());
  }
  return cases;
}

// The case's rows, in the given type, through the engine, against the file.
void ExpectGolden(Engine& engine, const Layer& layer, const reference::IoFile& io, const reference::Answer& want,
                  const LayerSource& source, DType dtype) {
  Part part;
  part.input = Rows::Poisoned(io.n, io.d, dtype);
  for (std::int64_t i = 0; i < io.n * io.d; ++i) part.input.Set(i / io.d, i % io.d, static_cast<float>(io.rows[i]));
  part.output_dtype = DType::kF32;
  const Rows output = RunPart(engine, layer, part);
  const reference::Answer got{
      output.ToDoubles(), part.routed_ids, {part.routed_weights.begin(), part.routed_weights.end()}};
  const reference::Comparison c = reference::Compare({.n = io.n, .rows = io.rows}, got, want, &source);
  EXPECT_LE(c.relative_error, dtype == DType::kF32 ? 1e-5 : 5e-3) << "worst row " << c.worst_row;
  EXPECT_EQ(c.routing_mismatches, 0) << "first at row " << c.first_mismatch;
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
      ExpectGolden(engine(), *layer, *io, want->second, **source, DType::kBF16);
      ExpectGolden(engine(), *layer, *io, want->second, **source, DType::kF32);
    }
  }
}

}  // namespace
}  // namespace expertd::contract
