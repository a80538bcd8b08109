// What is special to the CPU engine: every instruction set, chunks, threads. The broad suite is tests/contract.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "kernels/cpu/cpu_engine.h"
#include "kernels/cpu/isa.h"
#include "kernels/reference/layer.h"
#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd {
namespace {

using ::testing::HasSubstr;
using testing::MakeRandomLayer;
using testing::RelativeError;
using testing::Rows;
using testing::SimpleSpec;

Rows Forward(Engine& engine, const Layer& layer, const Rows& in) {
  Rows out = Rows::Poisoned(in.n(), in.d(), in.dtype());
  const Segment segment = {
      .rows = in.n(), .input = in.row(0), .output = out.row(0), .input_dtype = in.dtype(), .output_dtype = in.dtype()};
  const absl::Status status = engine.Run(layer, {&segment, 1}, nullptr);
  EXPECT_TRUE(status.ok()) << status;
  return out;
}

// One instruction set, or a visible skip where this machine does not have it.
class CpuEngineTest : public ::testing::TestWithParam<cpu::Isa> {
 protected:
  void SetUp() override {
    const absl::StatusOr<cpu::Isa> isa = cpu::ChooseIsa(cpu::IsaName(GetParam()));
    if (!isa.ok()) GTEST_SKIP() << isa.status().message();
  }
  std::unique_ptr<Engine> Make(int threads = 2, std::int64_t workspace_bytes = 256 << 20) {
    auto engine = MakeCpuEngine(
        {.threads = threads, .workspace_bytes = workspace_bytes, .isa = std::string(cpu::IsaName(GetParam()))});
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *std::move(engine);
  }
};

TEST_P(CpuEngineTest, EveryFormatAndRowTypeIsCloseToTheReference) {
  for (WeightFormat format : {WeightFormat::kBF16, WeightFormat::kF16, WeightFormat::kF32, WeightFormat::kFp8Block128,
                              WeightFormat::kMxfp4}) {
    LayerSpec spec = SimpleSpec(/*hidden_size=*/192, /*num_experts=*/6, /*experts_per_token=*/3, /*intermediate=*/160);
    spec.expert_format = spec.shared_format = format;
    spec.shared_intermediate_size = 96;
    spec.shared_gated = true;
    const auto source = MakeRandomLayer(spec);
    auto engine = Make();
    auto layer = engine->LoadLayer(*source);
    ASSERT_TRUE(layer.ok()) << layer.status();
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      const Rows in = Rows::Random(40, 192, dtype, 3);
      const auto want = reference::RunLayer(*source, {.n = in.n(), .rows = in.ToDoubles()});
      const double error = RelativeError(Forward(*engine, **layer, in).ToDoubles(), want.output);
      EXPECT_LT(error, dtype == DType::kBF16 ? 5e-3 : 1e-6) << WeightFormatName(format) << ", " << DTypeName(dtype);
    }
  }
}

TEST_P(CpuEngineTest, BitsDependNeitherOnTheBatchNorOnThreadsNorOnChunks) {
  for (WeightFormat format : {WeightFormat::kBF16, WeightFormat::kFp8Block128, WeightFormat::kMxfp4}) {
    LayerSpec spec = SimpleSpec(320, 4, 2, 96);
    spec.expert_format = format;
    const auto source = MakeRandomLayer(spec);
    auto engine = Make(/*threads=*/2);
    auto layer = engine->LoadLayer(*source);
    ASSERT_TRUE(layer.ok()) << layer.status();
    for (DType dtype : {DType::kBF16, DType::kF32}) {
      const Rows in = Rows::Random(300, 320, dtype, 5);
      const Rows all = Forward(*engine, **layer, in);
      for (std::int64_t n : {1, 2, 5, 6, 7, 12, 13, 33, 131}) {
        EXPECT_EQ(Forward(*engine, **layer, in.Slice(7, n)), all.Slice(7, n)) << n << " rows of " << DTypeName(dtype);
      }
      // The smallest workspace that a layer may have, so that chunks are of a few rows; one thread, and more than
      // cores.
      for (int threads : {1, 5}) {
        auto other = Make(threads, 1 << 20);
        auto same_layer = other->LoadLayer(*source);
        ASSERT_TRUE(same_layer.ok()) << same_layer.status();
        EXPECT_EQ(Forward(*other, **same_layer, in), all) << threads << " threads";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Isas, CpuEngineTest, ::testing::ValuesIn(cpu::kAllIsas),
                         [](const auto& info) { return std::string(cpu::IsaName(info.param)); });

TEST(CpuEngineOptionsTest, BadValuesAreNamed) {
  EXPECT_THAT(MakeCpuEngine({.threads = -1}).status().message(), HasSubstr("threads: -1"));
  EXPECT_THAT(MakeCpuEngine({.max_batch_rows = 0}).status().message(), HasSubstr("max_batch_rows: 0"));
  EXPECT_THAT(MakeCpuEngine({.workspace_bytes = 0}).status().message(), HasSubstr("workspace_bytes: 0"));
  EXPECT_THAT(MakeCpuEngine({.isa = "mmx"}).status().message(), HasSubstr("'mmx'"));
}

TEST(CpuEngineOptionsTest, ALayerThatTheWorkspaceCannotHoldIsRefused) {
  auto engine = MakeCpuEngine({.threads = 1, .workspace_bytes = 4096});
  ASSERT_TRUE(engine.ok()) << engine.status();
  const absl::Status status = (*engine)->LoadLayer(*MakeRandomLayer(SimpleSpec(64, 2, 1, 32))).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), HasSubstr("workspace_bytes: 4096"));
}

TEST(CpuEngineOptionsTest, AnotherEnginesLayerIsRefused) {
  auto one = MakeCpuEngine({.threads = 1}), two = MakeCpuEngine({.threads = 1});
  ASSERT_TRUE(one.ok() && two.ok());
  auto layer = (*one)->LoadLayer(*MakeRandomLayer(SimpleSpec(64, 2, 1, 32)));
  ASSERT_TRUE(layer.ok()) << layer.status();
  EXPECT_EQ((*two)->Run(**layer, {}, nullptr).code(), absl::StatusCode::kFailedPrecondition);
}

}  // namespace
}  // namespace expertd
