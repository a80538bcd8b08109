#include <cstring>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/ops.h"
#include "tests/support/random.h"

namespace expertd::reference {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

struct Aligned {
  std::vector<std::int32_t> counts, offsets, sorted_slots, block_experts;
  absl::Status status;
};

Aligned Align(const std::vector<std::int32_t>& ids, std::int64_t e, std::int64_t block) {
  const auto slots = static_cast<std::int64_t>(ids.size());
  const std::int64_t padded = PaddedSlots(slots, e, block);
  Aligned a{std::vector<std::int32_t>(e, -7),
            std::vector<std::int32_t>(e + 1, -7),
            std::vector<std::int32_t>(padded, -7),
            std::vector<std::int32_t>(padded / block, -7),
            {}};
  a.status = MoeAlignBlockSize({.slots = slots,
                                .e = e,
                                .block = block,
                                .ids = ids.data(),
                                .counts = a.counts.data(),
                                .offsets = a.offsets.data(),
                                .sorted_slots = a.sorted_slots.data(),
                                .block_experts = a.block_experts.data()});
  return a;
}

TEST(MoeAlignBlockSizeTest, SortsPadsAndSkips) {
  const Aligned a = Align({2, 0, -1, 2, 2, 0}, 4, 2);
  ASSERT_TRUE(a.status.ok()) << a.status;
  EXPECT_THAT(a.counts, ElementsAre(2, 0, 3, 0));
  EXPECT_THAT(a.offsets, ElementsAre(0, 2, 2, 6, 6));
  EXPECT_THAT(a.sorted_slots, ElementsAre(1, 5, 0, 3, 4, -1, -1, -1, -1, -1));
  EXPECT_THAT(a.block_experts, ElementsAre(0, 2, 2, -1, -1));
}

TEST(MoeAlignBlockSizeTest, NoSlots) {
  const Aligned a = Align({}, 3, 16);
  ASSERT_TRUE(a.status.ok()) << a.status;
  EXPECT_THAT(a.counts, Each(0));
  EXPECT_THAT(a.offsets, Each(0));
}

TEST(MoeAlignBlockSizeTest, PaddedSlotsHoldsTheWorstCase) {
  expertd::testing::Random random(5);
  for (const std::int64_t e : {1, 7, 64}) {
    for (const std::int64_t block : {1, 16, 128}) {
      for (const std::int64_t slots : {1, 6, 15, 16, 17, 300}) {
        std::vector<std::int32_t> ids(slots);
        for (std::int64_t s = 0; s < slots; ++s) {  // spread out as far as possible
          ids[s] = static_cast<std::int32_t>(slots <= e ? s : random.Below(e));
        }
        const Aligned a = Align(ids, e, block);
        ASSERT_TRUE(a.status.ok());
        ASSERT_LE(a.offsets[e], PaddedSlots(slots, e, block));
        std::int64_t last = -1;
        for (std::int64_t p = 0; p < a.offsets[e]; ++p) {
          const std::int32_t s = a.sorted_slots[p];
          if (s < 0) continue;
          EXPECT_EQ(ids[s], a.block_experts[p / block]);
          const std::int64_t key = ids[s] * slots + s;
          EXPECT_GT(key, last) << "not sorted or not stable";
          last = key;
        }
      }
    }
  }
}

TEST(MoeAlignBlockSizeTest, RefusesIdsOutOfRange) {
  EXPECT_EQ(Align({0, 4}, 4, 2).status.message(), "ids[1]: 4 is outside -1..3");
  EXPECT_EQ(Align({0, -2}, 4, 2).status.message(), "ids[1]: -2 is outside -1..3");
}

TEST(FusedRoutingScatterTest, PlacesRowsAndReportsOverflow) {
  constexpr std::int64_t kN = 3, kD = 2, kE = 2, kK = 2, kMaxTokens = 2;
  const float rows[kN * kD] = {1, 2, 3, 4, 5, 6};
  const std::int32_t ids[kN * kK] = {1, 0, 1, -1, 1, 0};
  std::vector<float> batched(kE * kMaxTokens * kD, -9);
  std::vector<std::int32_t> slot_pos(kN * kK, -9), counts(kE, -9);
  std::int32_t overflow = -9;
  ASSERT_TRUE(FusedRoutingScatter({.n = kN,
                                   .d = kD,
                                   .e = kE,
                                   .k = kK,
                                   .max_tokens = kMaxTokens,
                                   .dtype = DType::kF32,
                                   .rows = rows,
                                   .ids = ids,
                                   .batched = batched.data(),
                                   .slot_pos = slot_pos.data(),
                                   .counts = counts.data(),
                                   .overflow = &overflow})
                  .ok());
  EXPECT_THAT(slot_pos, ElementsAre(2, 0, 3, -1, -1, 1));
  EXPECT_THAT(counts, ElementsAre(2, 3));
  EXPECT_EQ(overflow, 1);
  EXPECT_THAT(batched, ElementsAre(1, 2, 5, 6, 1, 2, 3, 4));
}

TEST(FusedRoutingScatterTest, ZeroesPositionsThatNoSlotNames) {
  std::vector<float> batched(3 * 2, -9);
  std::int32_t counts[3], overflow = -9, slot_pos = -9;
  const float row[2] = {1, 2};
  const std::int32_t id = 1;
  FusedRoutingScatterArgs args{.n = 1,
                               .d = 2,
                               .e = 3,
                               .k = 1,
                               .max_tokens = 1,
                               .dtype = DType::kF32,
                               .rows = row,
                               .ids = &id,
                               .batched = batched.data(),
                               .slot_pos = &slot_pos,
                               .counts = counts,
                               .overflow = &overflow};
  ASSERT_TRUE(FusedRoutingScatter(args).ok());
  EXPECT_THAT(batched, ElementsAre(0, 0, 1, 2, 0, 0));
  args.n = 0;
  ASSERT_TRUE(FusedRoutingScatter(args).ok());
  EXPECT_THAT(batched, Each(0));
  EXPECT_THAT(counts, Each(0));
  EXPECT_EQ(overflow, 0);
}

TEST(FusedDispatchPackTest, OrdersByShardAndKeepsBigIdsExact) {
  constexpr std::int64_t kN = 2, kD = 3, kE = 1000, kK = 2, kShards = 3;  // runs of 334
  const std::uint16_t rows[kN * kD] = {1, 2, 3, 4, 5, 6};
  const std::int32_t ids[kN * kK] = {999, 334, -1, 333};
  std::vector<std::uint16_t> packed(kN * kK * (kD + 8), 77);
  std::vector<std::int32_t> source(kN * kK, -9), counts(kShards, -9);
  ASSERT_TRUE(FusedDispatchPack({.n = kN,
                                 .d = kD,
                                 .e = kE,
                                 .k = kK,
                                 .shards = kShards,
                                 .rows = rows,
                                 .ids = ids,
                                 .packed = packed.data(),
                                 .source = source.data(),
                                 .counts = counts.data()})
                  .ok());
  EXPECT_THAT(counts, ElementsAre(1, 1, 1));
  EXPECT_THAT(source, ElementsAre(3, 1, 0, -1));
  const std::int32_t want_ids[] = {333, 334, 999};
  const std::uint16_t want_first[] = {4, 1, 1};
  for (int p = 0; p < 3; ++p) {
    const std::uint16_t* const row = &packed[p * (kD + 8)];
    std::int32_t id;
    std::memcpy(&id, row + kD, sizeof(id));
    EXPECT_EQ(id, want_ids[p]);
    EXPECT_EQ(row[0], want_first[p]);
    EXPECT_THAT(std::vector<std::uint16_t>(row + kD + 2, row + kD + 8), Each(0));
  }
  EXPECT_EQ(packed[3 * (kD + 8)], 77) << "rows past the last held slot are untouched";
}

}  // namespace
}  // namespace expertd::reference
