// Rows that lie on the device ahead of their batch: the same bits, and memory that always comes back.
#include <cstring>
#include <memory>
#include <thread>
#include <utility>
#include <vector>

#include "kernels/cuda/engine/cuda_engine.h"
#include "tests/contract/harness.h"
#include "tests/gpu/gpu_test.h"

namespace expertd::testing {
namespace {

constexpr std::int64_t kD = 512;
constexpr std::size_t kRowBytes = kD * 2;

class StagingGpuTest : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (IsSkipped()) return;
    Make(64 << 20);
    auto layer = engine_->LoadLayer(*MakeRandomLayer(SimpleSpec(kD, /*num_experts=*/8, /*experts_per_token=*/2, 256)));
    ASSERT_TRUE(layer.ok()) << layer.status();
    layer_ = *std::move(layer);
  }
  void Make(std::int64_t staging_bytes) {
    auto engine = MakeCudaEngine({.workspace_bytes = 256 << 20, .staging_bytes = staging_bytes});
    ASSERT_TRUE(engine.ok()) << engine.status();
    engine_ = *std::move(engine);
  }

  // Rows in the engine's memory.
  RowBuffer Random(std::int64_t n, std::uint64_t seed) {
    RowBuffer buffer = engine_->AcquireRows(static_cast<std::size_t>(n) * kRowBytes).value();
    std::memcpy(buffer.data(), Rows::Random(n, kD, DType::kBF16, seed).row(0), buffer.size());
    return buffer;
  }
  StagedRowsPtr Stage(std::shared_ptr<const RowBuffer> rows) {
    const std::size_t bytes = rows->size();
    auto copy = engine_->StageRows(std::move(rows), 0, bytes);
    EXPECT_TRUE(copy.ok()) << copy.status();
    return copy.ok() ? *std::move(copy) : nullptr;
  }
  // The answers to rows [first, first + n).
  std::vector<std::byte> Run(const RowBuffer& rows, std::int64_t first, std::int64_t n, const StagedRows* staged) {
    RowBuffer out = engine_->AcquireRows(static_cast<std::size_t>(n) * kRowBytes).value();
    std::memset(out.data(), 0xa5, out.size());
    const Segment segment = {.rows = n,
                             .input = rows.data() + static_cast<std::size_t>(first) * kRowBytes,
                             .output = out.data(),
                             .staged = staged};
    EXPECT_EQ(engine_->Run(*layer_, {&segment, 1}, nullptr), absl::OkStatus());
    return {out.data(), out.data() + out.size()};
  }

  std::unique_ptr<Engine> engine_;
  LayerPtr layer_;
};

// In one chunk of a graph, and in several that copy.
TEST_F(StagingGpuTest, TheCopyIsUsedAndGivesTheSameBits) {
  std::int64_t on_arrival = 0;
  for (const std::int64_t n : Cases<std::int64_t>({40, 200, 256, 257, 1500, 9000}, {40, 300})) {
    SCOPED_TRACE(n);
    RowBuffer rows = Random(n, 1);
    const std::shared_ptr<const RowBuffer> shared = Share(rows);
    const auto want = Run(rows, 0, n, nullptr);
    const StagedRowsPtr copy = Stage(shared);
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(Run(rows, 0, n, copy.get()) == want) << "run " << i;
    std::memset(shared->data(), 0, shared->size());  // its copy has ended, as that run has
    EXPECT_TRUE(Run(rows, 0, n, copy.get()) == want) << "from the device";
    // A part of it, as after a cut; the very small goes with its batch.
    const std::int64_t first = n / 4, part = n / 2;
    const auto got = Run(rows, first, part, copy.get());
    const std::vector<std::byte> slice(want.begin() + first * kRowBytes, want.begin() + (first + part) * kRowBytes);
    EXPECT_TRUE(got == slice);
    on_arrival += 4 * n + part;
    EXPECT_EQ(engine_->staging().rows_on_arrival, on_arrival);
  }
  EXPECT_EQ(engine_->staging().bytes, 0);
}

TEST_F(StagingGpuTest, RowsThatTheCopyHoldsInPartGoWithTheirBatch) {
  RowBuffer rows = Random(600, 2);
  const std::shared_ptr<const RowBuffer> shared = Share(rows);
  const auto want = Run(rows, 0, 600, nullptr);
  auto copy = engine_->StageRows(shared, 100 * kRowBytes, 300 * kRowBytes);
  ASSERT_TRUE(copy.ok()) << copy.status();
  EXPECT_TRUE(Run(rows, 0, 600, copy->get()) == want);
  EXPECT_EQ(engine_->staging().rows_on_arrival, 0);
  EXPECT_EQ(engine_->staging().rows_with_batch, 1200);
}

TEST_F(StagingGpuTest, RowsStayUntilTheirDroppedCopyHasEnded) {
  constexpr std::int64_t kRows = 20'000;  // 20 MB: on their way for 400 us
  std::vector<std::weak_ptr<const RowBuffer>> kept;
  for (int i = 0; i < 6; ++i) {
    RowBuffer rows = Random(kRows, 3);
    std::shared_ptr<const RowBuffer> shared = Share(rows);
    kept.push_back(shared);
    StagedRowsPtr copy = Stage(std::move(shared));
    ASSERT_NE(copy, nullptr);
    rows.Reset();  // as when its caller has gone
    copy.reset();
    EXPECT_EQ(engine_->staging().bytes, 0);
  }
  EXPECT_FALSE(kept.back().expired()) << "the last one's copy cannot have ended yet";
  RowBuffer rows = Random(1, 4);
  for (int i = 0; i < 1000 && !kept.back().expired(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
    Run(rows, 0, 1, nullptr);
  }
  for (const auto& each : kept) EXPECT_TRUE(each.expired());
}

// A place is given again while its old copy is still on its way there.
TEST_F(StagingGpuTest, APlaceIsUsedAgainAtOnce) {
  Make(2 << 20);
  auto layer = engine_->LoadLayer(*MakeRandomLayer(SimpleSpec(kD, 8, 2, 256)));
  ASSERT_TRUE(layer.ok());
  layer_ = *std::move(layer);
  for (int i = 0; i < 20; ++i) {
    RowBuffer old = Random(2000, 10), rows = Random(2000, 11 + i);
    const auto want = Run(rows, 0, 2000, nullptr);
    Stage(Share(old)).reset();
    const StagedRowsPtr copy = Stage(Share(rows));
    EXPECT_TRUE(Run(rows, 0, 2000, copy.get()) == want);
  }
}

TEST_F(StagingGpuTest, WhatDoesNotFitIsRefused) {
  Make(1 << 20);
  RowBuffer a = Random(600, 5), b = Random(600, 6);
  StagedRowsPtr first = Stage(Share(a));
  const std::shared_ptr<const RowBuffer> shared = Share(b);
  EXPECT_TRUE(absl::IsResourceExhausted(engine_->StageRows(shared, 0, shared->size()).status()));
  EXPECT_EQ(engine_->staging().bytes, 600 * static_cast<std::int64_t>(kRowBytes));
  first.reset();
  EXPECT_NE(Stage(shared), nullptr);
  EXPECT_TRUE(absl::IsResourceExhausted(MakeCudaEngine({.staging_bytes = 1LL << 50}).status()));
}

TEST_F(StagingGpuTest, RowsInOrdinaryMemoryAreRefused) {
  std::vector<std::byte> memory(1 << 20);
  RowBuffer rows(memory.data(), memory.size(), memory.size(), [](std::byte*, std::size_t) {});
  EXPECT_TRUE(absl::IsFailedPrecondition(engine_->StageRows(Share(rows), 0, 1 << 20).status()));
}

// As a server does it: one thread stages and drops, two run.
TEST_F(StagingGpuTest, FromManyThreads) {
  RowBuffer shown = Random(3000, 7);
  const auto want = Run(shown, 0, 3000, nullptr);
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        RowBuffer rows = Random(3000, 7);
        const StagedRowsPtr copy = Stage(Share(rows));
        if (t == 0) continue;
        EXPECT_TRUE(Run(rows, 0, 3000, copy.get()) == want);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(engine_->staging().bytes, 0);
}

}  // namespace
}  // namespace expertd::testing
