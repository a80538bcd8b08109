#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/cuda/engine/batched_plan.h"
#include "kernels/cuda/engine/weight_packing.h"
#include "kernels/cuda/expert_sort_config.h"
#include "kernels/cuda/grouped_gemm_config.h"
#include "kernels/cuda/hopper/fp8_rows.h"
#include "kernels/cuda/hopper/fused_config.h"
#include "kernels/cuda/ragged_wgmma_config.h"
#include "kernels/cuda/row_ops_config.h"
#include "kernels/cuda/topk_routing_config.h"
#include "kernels/cuda/weight_grad_config.h"
#include "tests/gpu/routed_ids.h"
#include "tests/support/random.h"

namespace expertd::cuda {
namespace {

using ::testing::ElementsAre;

constexpr DeviceLimits kH200 = {.multiprocessors = 132, .shared_bytes_per_block = 232448};
constexpr DeviceLimits kA100 = {.multiprocessors = 108, .shared_bytes_per_block = 166912};
constexpr DeviceLimits kL4 = {.multiprocessors = 58, .shared_bytes_per_block = 101376};

TEST(ExpertSortConfigTest, EverySlotBelongsToExactlyOneWarp) {
  for (const std::int64_t bins : {1, 8, 256, 512, 1024, 4096}) {
    for (const std::int64_t slots : {0, 1, 32, 33, 1025, 4096, 4097, 16384, 65536, 1000000, 2147483647}) {
      const ExpertSortConfig config = ChooseExpertSort(slots, bins);
      EXPECT_GE(config.blocks * config.warps * config.slots_per_warp, slots);
      EXPECT_EQ(config.slots_per_warp % 32, 0);
      EXPECT_GE(config.warps, 1);
      EXPECT_LE(config.warps, 32);
      EXPECT_LE(config.blocks, kMaxSortBlocks);
      EXPECT_LE(config.shared_bytes, kL4.shared_bytes_per_block - 1024) << bins;
    }
  }
}

TEST(BatchedPlanTest, TakesAsManyRowsAsFit) {
  constexpr std::int64_t kE = 128, kD = 2048, kF = 768;
  const BatchedPlan all = PlanBatched(kE, 100, kD, kF, 2, std::int64_t{1} << 40);
  EXPECT_EQ(all.rows, 100);
  EXPECT_EQ(all.gate_up, kE * 100 * kD * 2);
  EXPECT_EQ(all.hidden - all.gate_up, kE * 100 * 2 * kF * 4);
  EXPECT_EQ(all.out - all.hidden, kE * 100 * kF * 2);
  EXPECT_EQ(all.offsets - all.out, kE * 100 * kD * 2);
  EXPECT_EQ(PlanBatched(kE, 100, kD, kF, 2, all.bytes).rows, 100);
  EXPECT_EQ(PlanBatched(kE, 100, kD, kF, 2, all.bytes - 1).rows, 99);
  EXPECT_EQ(PlanBatched(kE, 0, kD, kF, 2, all.bytes).rows, 0);
  const std::int64_t one = PlaceBatched(kE, 1, kD, kF, 2).bytes;
  EXPECT_EQ(PlanBatched(kE, 1000, kD, kF, 2, one).rows, 1);
  EXPECT_EQ(PlanBatched(kE, 1000, kD, kF, 2, one - 1).rows, 0);
}

TEST(FusedConfigTest, EveryTileFitsAMultiprocessor) {
  for (const FusedTile& tile : kFusedTiles) {
    if (tile.streams()) continue;  // stream_config.h checks its own when it is compiled
    EXPECT_LE(FusedSharedBytes(tile, kFusedMaxExperts), kH200.shared_bytes_per_block - 128) << tile.tokens;
    EXPECT_GE(StagedTokens(tile), 16) << tile.tokens;
    EXPECT_EQ(StagedTokens(tile) % 16, 0) << "stmatrix stores 16 tokens at once";
    EXPECT_EQ(tile.stage_bytes() % 1024, 0) << "swizzled lines repeat every 1024 bytes";
    EXPECT_EQ(tile.tokens % 16, 0) << "a box brings 16 rows";
  }
}

TEST(FusedConfigTest, TilesFollowTheRowsOfAnExpert) {
  const auto choose = [](std::int64_t positions, std::int64_t experts, WeightCode weights = WeightCode::kBF16) {
    return ChooseFusedTile({positions, experts, 4096, 14336, weights});  // 16 weight tiles of an expert
  };
  EXPECT_EQ(choose(16, 128), FusedTileId::kSome) << "256 weight tiles";
  EXPECT_EQ(choose(17, 128), FusedTileId::kMany) << "272";
  EXPECT_EQ(choose(48 * 8, 8), FusedTileId::kSome);
  EXPECT_EQ(choose(48 * 8 + 1, 8), FusedTileId::kMany);
  EXPECT_EQ(choose(65536, 128), FusedTileId::kMany);
  EXPECT_EQ(choose(1280, 128, WeightCode::kFp8), FusedTileId::kFewFp8);
  EXPECT_EQ(choose(1281, 128, WeightCode::kFp8), FusedTileId::kSomeFp8);
  EXPECT_EQ(choose(48 * 8 + 1, 8, WeightCode::kFp8), FusedTileId::kManyFp8);
  EXPECT_EQ(choose(128 * 8, 8, WeightCode::kMxfp4), FusedTileId::kSomeMxfp4);
  EXPECT_EQ(choose(128 * 8 + 1, 8, WeightCode::kMxfp4), FusedTileId::kManyMxfp4);
  for (const WeightCode code : {WeightCode::kBF16, WeightCode::kFp8, WeightCode::kFp8Both, WeightCode::kMxfp4}) {
    for (const std::int64_t rows : {1, 3, 11, 49}) EXPECT_EQ(ShapeOf(choose(rows, 1, code)).weights_code, code);
  }
}

TEST(FusedConfigTest, FewRowsStreamWhereTheirWeightsAreNotTooMany) {
  const auto streams = [](std::int64_t positions, std::int64_t expert_size) {
    return ShapeOf(ChooseFusedTile({positions, 128, expert_size / 3, 1})).streams();
  };
  constexpr std::int64_t kMost = kStreamWeights / 3 * 3;
  EXPECT_TRUE(streams(1, kMost + 3));
  EXPECT_TRUE(streams(2, kMost + 3));
  EXPECT_FALSE(streams(3, kMost));
  EXPECT_TRUE(streams(kStreamPositions, kMost / kStreamPositions));
  EXPECT_FALSE(streams(kStreamPositions, kMost / kStreamPositions + 6));
  EXPECT_FALSE(streams(kStreamPositions + 1, 3));
  EXPECT_EQ(UnitTokens(1), 2);
  EXPECT_EQ(UnitTokens(2), 2);
  EXPECT_EQ(UnitTokens(3), kUnitTokens);
}

// Every code and every scale is found again where the kernels look for it; rows and K end within a block.
TEST(PackedWeightsTest, EveryElementIsAtItsPlace) {
  constexpr std::int64_t kF = 192, kIn = 192, kOut = 2 * kF;
  testing::Random random(5);
  std::vector<std::uint8_t> codes(kOut * kIn), group_scales(kOut * kIn / 32);
  std::vector<std::uint16_t> elements(codes.size());
  for (std::uint16_t& element : elements) element = static_cast<std::uint16_t>(random.Uniform() * 65536);
  for (std::uint8_t& code : codes) code = static_cast<std::uint8_t>(random.Uniform() * 126);
  for (std::uint8_t& scale : group_scales) scale = static_cast<std::uint8_t>(random.Uniform() * 255);
  const float block_scales[4][2] = {{1, 2}, {3, 4}, {5, 6}, {7, 8}};
  for (const WeightCode code : {WeightCode::kBF16, WeightCode::kFp8, WeightCode::kFp8Both, WeightCode::kMxfp4}) {
    const bool bf16 = code == WeightCode::kBF16, fp8 = code == WeightCode::kFp8 || code == WeightCode::kFp8Both;
    const DType dtype = bf16 ? DType::kBF16 : fp8 ? DType::kF8E4M3 : DType::kF4E2M1;
    const PackedBlock block = {code};
    const auto part = [&](std::int64_t first, std::int64_t rows) {
      const void* const data = bf16 ? static_cast<const void*>(elements.data() + first * kIn)
                                    : codes.data() + (fp8 ? first * kIn : first * kIn / 2);
      return WeightView{.data = data,
                        .dtype = dtype,
                        .out = rows,
                        .in = kIn,
                        .out_stride = kIn,
                        .block_scales = block_scales[first == 0 ? 0 : 2],
                        .block_scale_stride = 2,
                        .group_scales = group_scales.data() + first * kIn / 32,
                        .group_scale_stride = kIn / 32};
    };
    for (const Packing packing : {Packing::kGateUp, Packing::kRows}) {
      const std::int64_t rows = packing == Packing::kGateUp ? kOut : kF;
      const std::vector<WeightView> views = packing == Packing::kGateUp
                                                ? std::vector<WeightView>{part(0, kF), part(kF, kF)}
                                                : std::vector<WeightView>{part(0, kF)};
      const std::int64_t steps = PackedSteps(kIn);
      std::vector<std::byte> packed(static_cast<std::size_t>(PackedBytes(code, rows, kIn)));
      for (std::int64_t i = 0; i < PackedTiles(rows) * steps; ++i) {
        PackBlock(code, views, packing, i / steps, i % steps, packed.data() + i * block.bytes());
      }
      for (std::int64_t row = 0; row < rows; ++row) {
        const PackedRow place = PlaceOfRow(packing, row, rows);
        for (std::int64_t k = 0; k < kIn; ++k) {
          const auto* const at = reinterpret_cast<const std::uint8_t*>(packed.data()) +
                                 (place.tile * steps + k / kPackedK) * block.bytes();
          const std::uint8_t* const line = at + block.LineAt(place.line, k);
          const int within = static_cast<int>(k % block.line_k());
          if (bf16) {
            std::uint16_t got;
            std::memcpy(&got, line + Bf16Byte(place.line, within), 2);
            ASSERT_EQ(got, elements[row * kIn + k]) << row << ' ' << k;
          } else if (fp8) {
            const int byte = code == WeightCode::kFp8 ? Fp8Byte(within) : Fp8BothByte(place.line, within);
            ASSERT_EQ(line[byte], codes[row * kIn + k]) << row << ' ' << k;
            float scale;
            std::memcpy(&scale, at + block.scales_at() + place.line % 16 / 8 * 4, 4);
            ASSERT_EQ(scale, block_scales[row / kF * 2 + row % kF / 128][k / 128]) << row << ' ' << k;
          } else {
            ASSERT_EQ(Fp4Code(line, within), codes[(row * kIn + k) / 2] >> k % 2 * 4 & 15) << row << ' ' << k;
            ASSERT_EQ(at[place.line * 4 + Fp4ScaleByte(k / 32 % 4)],
                      std::min(group_scales[row * (kIn / 32) + k / 32] + kFp4ScaleOffset, 255))
                << row << ' ' << k;
          }
        }
      }
    }
  }
}

TEST(Fp8RowsTest, AScaleBringsTheGreatestMagnitudeBelow448) {
  for (std::uint32_t most = 0; most < 0x7f80; ++most) {
    const Fp8Scale scale = ScaleOfMost(most);
    const float value = Bf16ToF32(static_cast<std::uint16_t>(most)), inverse = std::bit_cast<float>(scale.inverse);
    ASSERT_EQ(std::bit_cast<float>(scale.scale) * inverse, 1.0f) << most;
    ASSERT_LE(value * inverse, 448.0f) << most;
    ASSERT_TRUE(value * inverse > 224.0f || scale.scale == std::bit_cast<std::uint32_t>(0x1p-126f)) << most;
  }
  for (const std::uint32_t most : {0x7f80, 0x7fc0}) {
    EXPECT_TRUE(std::isnan(std::bit_cast<float>(ScaleOfMost(most).scale)));
  }
}

TEST(PackedWeightsTest, ANanCodeMakesItsBlocksScaleNan) {
  std::vector<std::uint8_t> codes(128 * 128, 0x38);
  codes[3 * 128 + 5] = 0xff;
  const float scales[1] = {1.0f};
  const WeightView plain = {
      .data = codes.data(), .dtype = DType::kF8E4M3, .out = 128, .in = 128, .out_stride = 128, .block_scales = scales};
  std::vector<std::byte> packed(PackedBlock{WeightCode::kFp8}.bytes());
  PackBlock(WeightCode::kFp8, {&plain, 1}, Packing::kRows, 0, 0, packed.data());
  float got[2];
  std::memcpy(got, packed.data(), sizeof(got));
  EXPECT_TRUE(std::isnan(got[0]) && std::isnan(got[1]));
}

TEST(FusedConfigTest, TokenTilesAreAtMostWhatEveryExpertCanWaste) {
  for (const FusedTile& tile : kFusedTiles) {
    for (const std::int64_t experts : {1, 2, 60}) {
      for (const std::int64_t rows : {1, 15, 16, 17, 159, 160, 161, 1000}) {
        EXPECT_LE(experts * CeilDiv(rows, tile.tokens), MaxTokenTiles(tile, experts * rows, experts));
      }
    }
  }
}

TEST(FusedConfigTest, OddShapesAndOtherDevicesTakeTheSortedPath) {
  DeviceLimits h200 = kH200;
  h200.compute_capability = 90;
  EXPECT_TRUE(UsesFused(h200, Element::kBF16, WeightCode::kBF16, 2880, 2880, 128));
  EXPECT_FALSE(UsesFused(h200, Element::kBF16, WeightCode::kBF16, 2880 + 8, 2880, 128));
  EXPECT_FALSE(UsesFused(h200, Element::kBF16, WeightCode::kBF16, 2880, 2880 + 32, 128));
  EXPECT_FALSE(UsesFused(h200, Element::kF32, WeightCode::kBF16, 2880, 2880, 128));
  EXPECT_FALSE(UsesFused(h200, Element::kBF16, WeightCode::kBF16, 2880, 2880, kFusedMaxExperts + 1));
  EXPECT_TRUE(UsesFused(h200, Element::kBF16, WeightCode::kFp8, 2880, 2880, 128));
  EXPECT_TRUE(UsesFused(h200, Element::kBF16, WeightCode::kMxfp4, 2880, 2880, 128));
  EXPECT_FALSE(UsesFused(h200, Element::kBF16, WeightCode::kF16, 2880, 2880, 128));
  EXPECT_FALSE(UsesFused(kA100, Element::kBF16, WeightCode::kBF16, 2880, 2880, 128));
}

TEST(ExpertSortConfigTest, FewSlotsTakeAKernelOfTheirOwn) {
  EXPECT_TRUE(ChooseExpertSort(kFewSlots, kFewBins).few);
  EXPECT_FALSE(ChooseExpertSort(kFewSlots + 1, kFewBins).few);
  EXPECT_FALSE(ChooseExpertSort(kFewSlots, kFewBins + 1).few);
  EXPECT_LE(FewSharedBytes(kFewBins), kL4.shared_bytes_per_block - 1024);
}

TEST(ExpertSortConfigTest, LanesThatCountTogetherAreOfOneWarp) {
  for (const std::int64_t slots : {0, 1, 64, 65, 1000, 2049, static_cast<int>(kCountedSlots)}) {
    const int lanes = CountingLanes(slots);
    EXPECT_EQ(32 % lanes, 0) << slots;
    EXPECT_LE(CeilDiv(slots, lanes), 128) << slots;
    EXPECT_GE(CountingBlocks(slots, 7) * kCountingThreads / lanes, CeilDiv(slots, 2) + 7) << slots;
  }
  EXPECT_EQ(CountingBlocks(0, 1), 1);
}

TEST(ExpertSortConfigTest, FewSlotsTakeOneBlock) {
  EXPECT_EQ(ChooseExpertSort(kMaxSlotsOfOneBlock, 256).blocks, 1);
  EXPECT_GT(ChooseExpertSort(kMaxSlotsOfOneBlock + 1, 256).blocks, 1);
}

TEST(TopkRoutingConfigTest, AWarpHoldsUpTo512Experts) {
  EXPECT_EQ(RoutingValuesPerLane(1, 1), 1);
  EXPECT_EQ(RoutingValuesPerLane(32, 1), 1);
  EXPECT_EQ(RoutingValuesPerLane(33, 1), 2);
  EXPECT_EQ(RoutingValuesPerLane(256, 8), 8);
  EXPECT_EQ(RoutingValuesPerLane(512, 32), 16);
  EXPECT_EQ(RoutingValuesPerLane(513, 1), 0);
  EXPECT_EQ(RoutingValuesPerLane(256, 64), 0) << "a lane looks at one group";
}

TEST(TopkRoutingConfigTest, ManyRowsShareAWarpUnlessAGroupLiesAcrossChunks) {
  for (const std::int64_t e : {1, 8, 32, 33, 64, 100, 128, 160, 256, 384, 512}) {
    const RoutingLanes many = RoutingLanesOfManyRows(e, 8, 0);
    EXPECT_GE(many.lanes * many.values, e);
    EXPECT_EQ(many.values % kRoutingChunk, 0);
    EXPECT_EQ(32 % many.lanes, 0);
    EXPECT_EQ(many.lanes * many.values, 32 * RoutingValuesPerLane(e, 1))
        << "both kernels add exponentials up in the same pieces";
  }
  EXPECT_EQ(RoutingLanesOfManyRows(513, 8, 0).lanes, 0);
  EXPECT_EQ(RoutingLanesOfManyRows(128, 9, 0).lanes, 0);
  EXPECT_EQ(RoutingLanesOfManyRows(256, 8, 32).lanes, 8);
  EXPECT_EQ(RoutingLanesOfManyRows(128, 8, 0).lanes, 8);
  EXPECT_EQ(RoutingLanesOfManyRows(128, 8, 16).lanes, 8);
  EXPECT_EQ(RoutingLanesOfManyRows(128, 8, 32).lanes, 4);
  EXPECT_EQ(RoutingLanesOfManyRows(64, 8, 32).lanes, 0) << "one with more room adds in another order";
  EXPECT_EQ(RoutingLanesOfManyRows(160, 6, 20).lanes, 0);
  EXPECT_EQ(RoutingLanesOfManyRows(256, 8, 64).lanes, 0);
}

TEST(TopkRoutingConfigTest, LanesOfSoftmaxFollowTheRowsButNotTheirRoom) {
  for (const std::int64_t e : {1, 8, 32, 33, 64, 100, 128, 160, 256, 384, 512}) {
    const RoutingLanes few = RoutingLanesOfSoftmax(1, e, 8), many = RoutingLanesOfSoftmax(kManyRoutingRows, e, 8);
    EXPECT_GE(few.lanes * few.values, e);
    EXPECT_EQ(few.lanes * few.values, many.lanes * many.values) << "both add exponentials up over the same tree";
    EXPECT_GE(many.lanes, kRoutingChunk) << "a lane writes one of the chosen";
    EXPECT_EQ(32 % many.lanes, 0);
  }
  EXPECT_EQ(RoutingLanesOfSoftmax(kManyRoutingRows - 1, 128, 8).lanes, 16);
  EXPECT_EQ(RoutingLanesOfSoftmax(kManyRoutingRows, 128, 8).lanes, 8);
  EXPECT_EQ(RoutingLanesOfSoftmax(1, 513, 8).lanes, 0);
  EXPECT_EQ(RoutingLanesOfSoftmax(1, 128, 9).lanes, 0);
}

TEST(RowOpsConfigTest, HopperHoldsManyRowsButNotSmallShareOfThem) {
  const DeviceLimits hopper = {.multiprocessors = 132, .shared_bytes_per_block = 232448, .compute_capability = 90};
  EXPECT_EQ(ChooseHeldRows(hopper, 8192, 8, 4096, 1 << 17).rows, 53);
  EXPECT_EQ(ChooseHeldRows(hopper, 8192, 8, 4096, 1 << 17).blocks, 132);
  EXPECT_EQ(ChooseHeldRows(hopper, 1055, 8, 4096, 0).blocks, 0) << "too few";
  EXPECT_EQ(ChooseHeldRows(hopper, 8192, 8, 14336, 0).blocks, 0) << "most would not fit";
  EXPECT_EQ(ChooseHeldRows(hopper, 8192, 17, 4096, 0).blocks, 0) << "too many slots to look through";
  EXPECT_EQ(ChooseHeldRows(hopper, 8192, 8, 4096, (1 << 20) + 1).blocks, 0) << "too many to clear";
  EXPECT_EQ(ChooseHeldRows(hopper, 2000, 1, 300 * 1024, 0).blocks, 0) << "not even one fits";
  EXPECT_EQ(ChooseHeldRows(kA100, 8192, 8, 4096, 0).blocks, 0);
  for (const std::int64_t bytes : {16, 80, 4096, 16384}) {
    const HeldRows held = ChooseHeldRows(hopper, 2000, 2, bytes, 0);
    EXPECT_LE(HeldSharedBytes(held.rows, bytes) + kHeldOwnedRows / 8 + 1024, hopper.shared_bytes_per_block);
  }
}

TEST(RowOpsConfigTest, ManySlotsAreMarkedInsteadOfScanned) {
  EXPECT_TRUE(ScanSlots(kMaxScannedSlots));
  EXPECT_FALSE(ScanSlots(kMaxScannedSlots + 1));
}

TEST(RowOpsConfigTest, FewSlotsAreCounted) {
  EXPECT_TRUE(CountSlots(kMaxCountedSlots, 256));
  EXPECT_FALSE(CountSlots(kMaxCountedSlots + 1, 256));
  EXPECT_FALSE(CountSlots(0, 256));
}

TEST(RowOpsConfigTest, ARowsDotProductTakesWholeWarps) {
  EXPECT_EQ(DotThreads(1), 32);
  EXPECT_EQ(DotThreads(256), 256);
  EXPECT_EQ(DotThreads(896), 448);
  EXPECT_EQ(DotThreads(7168), 512);
}

TEST(GroupedGemmConfigTest, TilesGrowWithTheRowsOfAnExpert) {
  EXPECT_EQ(ChooseGemmTile(8, 128, kH200), GemmTile::k64x8);
  EXPECT_EQ(ChooseGemmTile(4 * 128, 128, kH200), GemmTile::k64x8);
  EXPECT_EQ(ChooseGemmTile(8 * 128, 128, kH200), GemmTile::k64x32);
  EXPECT_EQ(ChooseGemmTile(32 * 128, 128, kH200), GemmTile::k128x64);
  EXPECT_EQ(ChooseGemmTile(512 * 128, 128, kH200), GemmTile::k256x128);
}

TEST(GroupedGemmConfigTest, EveryTileFitsItsDevice) {
  for (const DeviceLimits& device : {kH200, kA100, kL4}) {
    for (const std::int64_t experts : {1, 256, kMaxGemmExperts}) {
      for (const std::int64_t rows : {1, 8, 32, 1024}) {
        const GemmTile tile = ChooseGemmTile(rows * experts, experts, device);
        EXPECT_LE(GemmSharedBytes(tile, experts), device.shared_bytes_per_block);
      }
    }
  }
  EXPECT_EQ(ChooseGemmTile(65536, 128, kA100), GemmTile::k128x128);
}

TEST(GroupedGemmConfigTest, TheGridIsResidentAndNotLargerThanTheWork) {
  EXPECT_EQ(GemmBlocks(GemmTile::k256x128, 65536, 128, 1536, kH200), 132);
  EXPECT_EQ(GemmBlocks(GemmTile::k64x8, 2, 8, 4096, kH200), 128);
  EXPECT_EQ(GemmBlocks(GemmTile::k64x8, 1, 8, 1, kH200), 1);
}

TEST(GroupedGemmConfigTest, TensorCoresTakeWholeVectorsOfBf16) {
  EXPECT_TRUE(UsesTensorCores(Element::kBF16, WeightCode::kBF16, 2880));
  EXPECT_TRUE(UsesTensorCores(Element::kBF16, WeightCode::kFp8, 2880));
  EXPECT_TRUE(UsesTensorCores(Element::kBF16, WeightCode::kMxfp4, 2880));
  EXPECT_FALSE(UsesTensorCores(Element::kBF16, WeightCode::kF16, 2880));
  EXPECT_FALSE(UsesTensorCores(Element::kF32, WeightCode::kFp8, 2880));
  EXPECT_FALSE(UsesTensorCores(Element::kBF16, WeightCode::kBF16, 2881));
  EXPECT_FALSE(UsesTensorCores(Element::kF32, WeightCode::kF32, 2880));
}

TEST(WeightGradConfigTest, TilesCoverEveryGradient) {
  EXPECT_EQ(GradTiles(1, 1, 1), 1);
  EXPECT_EQ(GradTiles(3, kGradTileOut, kGradTileIn), 3);
  EXPECT_EQ(GradTiles(3, kGradTileOut + 1, kGradTileIn + 1), 12);
}

TEST(RaggedWgmmaConfigTest, IsHoppersAloneAndFitsItsBlocks) {
  DeviceLimits hopper = kH200, ampere = kA100;
  hopper.compute_capability = 90, ampere.compute_capability = 80;
  EXPECT_TRUE(UsesRaggedWgmma(hopper, Element::kBF16, 2048, 1536));
  EXPECT_FALSE(UsesRaggedWgmma(ampere, Element::kBF16, 2048, 1536));
  EXPECT_FALSE(UsesRaggedWgmma(hopper, Element::kF32, 2048, 1536));
  EXPECT_FALSE(UsesRaggedWgmma(hopper, Element::kBF16, 2044, 1536)) << "rows of a map are whole 16-byte vectors";
  EXPECT_FALSE(UsesRaggedWgmma(hopper, Element::kBF16, 2048, 1532));
  EXPECT_LE(RaggedSharedBytes(4096), kH200.shared_bytes_per_block);
}

TEST(RoutedIdsTest, AreThePublishedOnes) {
  const std::vector<std::int32_t> ids = testing::RoutedIds(4, 128, 8);
  EXPECT_THAT(std::vector(ids.begin(), ids.begin() + 8), ElementsAre(120, 48, 68, 21, 10, 83, 82, 18));
  EXPECT_THAT(std::vector(ids.begin() + 24, ids.end()), ElementsAre(32, 15, 115, 2, 92, 80, 37, 69));
  EXPECT_THAT(testing::RoutedIds(1, 128, 8, 1.2), ElementsAre(0, 1, 44, 2, 52, 6, 45, 95));
}

}  // namespace
}  // namespace expertd::cuda
