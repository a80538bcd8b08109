#include "server/null_engine.h"

#include <gtest/gtest.h>

#include <vector>

#include "tests/support/random_layer.h"
#include "tests/support/rows.h"

namespace expertd {
namespace {

using testing::Rows;

TEST(NullEngineTest, CopiesAndConvertsRows) {
  const auto engine = MakeNullEngine({});
  const auto layer = engine->LoadLayer(*testing::MakeRandomLayer(testing::SimpleSpec(24, 4, 2, 8)));
  ASSERT_TRUE(layer.ok()) << layer.status();
  for (const DType in : {DType::kBF16, DType::kF32}) {
    for (const DType out : {DType::kBF16, DType::kF32}) {
      const Rows rows = Rows::Random(5, 24, in, 3);
      Rows got = Rows::Poisoned(5, 24, out);
      std::vector<std::int32_t> ids(10, 7);
      std::vector<float> weights(10, 7);
      const Segment segments[] = {{.rows = 0},
                                  {.rows = 5,
                                   .input = rows.row(0),
                                   .output = got.row(0),
                                   .input_dtype = in,
                                   .output_dtype = out,
                                   .routed_ids = ids.data(),
                                   .routed_weights = weights.data()}};
      StageTimes times;
      ASSERT_TRUE(engine->Run(**layer, segments, &times).ok());
      EXPECT_GT(times.stage_out, 0);
      EXPECT_EQ(ids, std::vector<std::int32_t>(10, -1));
      EXPECT_EQ(weights, std::vector<float>(10, 0));
      for (std::int64_t i = 0; i < 5; ++i) {
        for (std::int64_t j = 0; j < 24; ++j) {
          const auto value = static_cast<float>(rows.At(i, j));
          ASSERT_EQ(got.At(i, j), in == DType::kF32 && out == DType::kBF16 ? Bf16ToF32(F32ToBf16(value)) : value);
        }
      }
    }
  }
}

TEST(NullEngineTest, BuffersAreReused) {
  auto engine = MakeNullEngine({.row_buffer_bytes = 1 << 20});
  const std::byte* const block = engine->AcquireRows(100'000)->data();
  for (int i = 0; i < 10; ++i) EXPECT_EQ(engine->AcquireRows(100'000)->data(), block);
}

TEST(NullEngineTest, BuffersAreBoundedAndOutliveTheEngine) {
  auto engine = MakeNullEngine({.row_buffer_bytes = 1024});
  absl::StatusOr<RowBuffer> first = engine->AcquireRows(500);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ(first->size(), 500);
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(first->data()) % 64, 0);
  absl::StatusOr<RowBuffer> second = engine->AcquireRows(513);
  EXPECT_TRUE(absl::IsResourceExhausted(second.status())) << second.status();
  second = engine->AcquireRows(512);
  ASSERT_TRUE(second.ok());
  second->Reset();
  EXPECT_TRUE(engine->AcquireRows(1).ok());
  engine.reset();
  first->data()[499] = std::byte{1};
}

}  // namespace
}  // namespace expertd
