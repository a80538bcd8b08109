// AcquireRows: alignment, budget, reuse, and buffers that outlive their engine; StageRows of what lies in them.
#include <cstring>
#include <thread>

#include "tests/contract/harness.h"

namespace expertd::contract {
namespace {

using RowBuffersTest = EngineTest;
EXPERTD_ENGINE_SUITE(RowBuffersTest, ReferenceAndEngines());

constexpr std::size_t kBudget = std::size_t{1} << 20;

TEST_P(RowBuffersTest, AlignedAndAllOfItUsable) {
  for (const std::size_t bytes : {1, 63, 64, 65, 4096, 4097, 300000}) {
    auto buffer = engine().AcquireRows(bytes);
    ASSERT_TRUE(buffer.ok()) << buffer.status();
    EXPECT_TRUE(static_cast<bool>(*buffer));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer->data()) % 64, 0u);
    EXPECT_EQ(buffer->size(), bytes);
    EXPECT_GE(buffer->capacity(), bytes);
    std::memset(buffer->data(), 0x5a, buffer->capacity());
  }
}

TEST_P(RowBuffersTest, TheBudgetIsKeptAndComesBack) {
  const std::unique_ptr<Engine> engine = Make({.row_buffer_bytes = kBudget});
  for (int round = 0; round < 3; ++round) {
    std::vector<RowBuffer> held;
    std::size_t sum = 0;
    for (;;) {
      auto buffer = engine->AcquireRows(30000);
      if (!buffer.ok()) {
        EXPECT_EQ(buffer.status().code(), absl::StatusCode::kResourceExhausted);
        break;
      }
      sum += buffer->size();
      ASSERT_LE(sum, kBudget);
      held.push_back(*std::move(buffer));
    }
    EXPECT_GE(held.size(), 8u) << "a round-up of more than four times wastes the budget";
    held.pop_back();
    EXPECT_TRUE(engine->AcquireRows(30000).ok()) << "what was released can be had again";
  }
}

TEST_P(RowBuffersTest, OneSizeDoesNotStarveAnother) {
  const std::unique_ptr<Engine> engine = Make({.row_buffer_bytes = kBudget});
  for (const std::size_t bytes : {std::size_t{100}, kBudget / 2, std::size_t{5000}, kBudget / 2}) {
    EXPECT_TRUE(engine->AcquireRows(bytes).ok()) << bytes;  // released at once
  }
}

TEST_P(RowBuffersTest, MoreThanTheBudgetIsRefused) {
  const std::unique_ptr<Engine> engine = Make({.row_buffer_bytes = kBudget});
  EXPECT_EQ(engine->AcquireRows(kBudget + 1).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(engine->AcquireRows(1000).ok());
}

TEST_P(RowBuffersTest, BuffersOutliveTheEngine) {
  std::unique_ptr<Engine> engine = Make({.row_buffer_bytes = kBudget});
  RowBuffer buffer = engine->AcquireRows(5000).value();
  engine.reset();
  std::memset(buffer.data(), 1, buffer.size());
  buffer.Reset();
  EXPECT_FALSE(static_cast<bool>(buffer));
}

TEST_P(RowBuffersTest, FromManyThreads) {
  const std::unique_ptr<Engine> engine = Make({.row_buffer_bytes = kBudget});
  const auto work = [&](int seed) {
    Random random(seed);
    std::vector<RowBuffer> held(4);
    for (int i = 0; i < 500; ++i) {
      auto buffer = engine->AcquireRows(static_cast<std::size_t>(1 + random.Below(60000)));
      if (!buffer.ok()) continue;
      std::memset(buffer->data(), seed, buffer->size());
      held[random.Below(4)] = *std::move(buffer);
    }
  };
  std::thread a(work, 1), b(work, 2);
  work(3);
  a.join();
  b.join();
  EXPECT_TRUE(engine->AcquireRows(kBudget / 2).ok()) << "all of it came back";
}

TEST_P(RowBuffersTest, RowsMayLieInBuffers) {
  const auto source = MakeRandomLayer(SimpleSpec(64, 4, 2, 32));
  const LayerPtr layer = Load(*source);
  Part part = MakePart(9, 64, DType::kBF16, 1);
  const Rows want = RunPart(engine(), *layer, part);
  const std::size_t bytes = 9 * want.row_bytes();
  RowBuffer in = engine().AcquireRows(bytes).value(), out = engine().AcquireRows(bytes).value();
  std::memcpy(in.data(), part.input.row(0), bytes);
  const Segment segment{.rows = 9, .input = in.data(), .output = out.data()};
  StageTimes times;
  ASSERT_EQ(engine().Run(*layer, {&segment, 1}, &times), absl::OkStatus());
  EXPECT_EQ(std::memcmp(out.data(), want.row(0), bytes), 0);
}

// An engine that computes in host memory says so, and its batches take no notice.
TEST_P(RowBuffersTest, RowsMayBeStaged) {
  constexpr std::int64_t kRows = 700, kD = 64;
  const std::unique_ptr<Engine> engine = Make({.staging_bytes = 1 << 20});
  const auto source = MakeRandomLayer(SimpleSpec(kD, 4, 2, 32));
  const LayerPtr layer = engine->LoadLayer(*source).value();
  Part part = MakePart(kRows, kD, DType::kBF16, 1);
  const Rows want = RunPart(*engine, *layer, part);
  const std::size_t bytes = kRows * want.row_bytes();
  RowBuffer in = engine->AcquireRows(bytes).value(), out = engine->AcquireRows(bytes).value();
  std::memcpy(in.data(), part.input.row(0), bytes);
  const absl::StatusOr<StagedRowsPtr> copy = engine->StageRows(Share(in), 0, bytes);
  EXPECT_EQ(copy.ok(), engine->info().stage_from_bytes > 0);
  EXPECT_TRUE(copy.ok() || absl::IsUnimplemented(copy.status())) << copy.status();
  const Segment segment{
      .rows = kRows, .input = in.data(), .output = out.data(), .staged = copy.ok() ? copy->get() : nullptr};
  ASSERT_EQ(engine->Run(*layer, {&segment, 1}, nullptr), absl::OkStatus());
  EXPECT_EQ(std::memcmp(out.data(), want.row(0), bytes), 0);
}

}  // namespace
}  // namespace expertd::contract
