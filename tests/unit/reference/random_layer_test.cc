#include "tests/support/random_layer.h"

#include <cmath>
#include <set>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace expertd::testing {
namespace {

constexpr WeightFormat kFormats[] = {WeightFormat::kBF16, WeightFormat::kF16, WeightFormat::kF32,
                                     WeightFormat::kFp8Block128, WeightFormat::kMxfp4};

double Rms(const WeightView& w) {
  double sum = 0;
  for (std::int64_t o = 0; o < w.out; ++o) {
    for (std::int64_t i = 0; i < w.in; ++i) sum += w.At(o, i) * w.At(o, i);
  }
  return std::sqrt(sum / static_cast<double>(w.out * w.in));
}

TEST(RandomLayerTest, EveryFormatHasTheSizeThatWasAskedFor) {
  for (const WeightFormat format : kFormats) {
    LayerSpec spec = SimpleSpec(160, 2, 1, 288);
    spec.expert_format = format;
    const auto layer = MakeRandomLayer(spec);
    const ExpertWeights w = layer->expert(1);
    // A few blocks of random scales each.
    const auto about_one = ::testing::AllOf(::testing::Gt(0.6), ::testing::Lt(1.7));
    EXPECT_THAT(Rms(w.gate) * std::sqrt(160.0) / 0.7, about_one) << WeightFormatName(format);
    EXPECT_THAT(Rms(w.up) * std::sqrt(160.0) / 0.7, about_one) << WeightFormatName(format);
    EXPECT_THAT(Rms(w.down) * std::sqrt(288.0) / 0.7, about_one) << WeightFormatName(format);
    EXPECT_NE(w.gate.At(0, 0), w.up.At(0, 0));
  }
}

// Gate, up and down of each layout are permutations of the same memory: none overlap, none leave it.
TEST(RandomLayerTest, LayoutsCoverTheMemoryOnce) {
  for (const WeightLayout layout : {WeightLayout::kRows, WeightLayout::kInterleavedRows, WeightLayout::kColumns,
                                    WeightLayout::kInterleavedColumns}) {
    const LayerSpec spec = SimpleSpec(6, 1, 1, 4);
    const auto plain = MakeRandomLayer(spec), other = MakeRandomLayer(spec, {.layout = layout});
    std::multiset<double> want, got;
    for (const auto& [layer, values] : {std::pair(plain.get(), &want), std::pair(other.get(), &got)}) {
      const ExpertWeights w = layer->expert(0);
      for (const WeightView& view : {w.gate, w.up, w.down}) {
        for (std::int64_t o = 0; o < view.out; ++o) {
          for (std::int64_t i = 0; i < view.in; ++i) values->insert(view.At(o, i));
        }
      }
    }
    EXPECT_EQ(got, want);
  }
}

TEST(RandomLayerTest, ShardsHoldTheWholeLayersExperts) {
  const LayerSpec whole = SimpleSpec(8, 4, 2, 4);
  LayerSpec shard = whole;
  shard.first_expert = 2;
  shard.held_experts = 1;
  EXPECT_EQ(MakeRandomLayer(shard)->expert(2).down.At(3, 3), MakeRandomLayer(whole)->expert(2).down.At(3, 3));
  EXPECT_NE(MakeRandomLayer(shard)->Fingerprint().value(), MakeRandomLayer(whole)->Fingerprint().value());
}

TEST(RandomLayerTest, SeedDecides) {
  const LayerSpec spec = SimpleSpec(8, 4, 2, 4);
  const auto a = MakeRandomLayer(spec, {.seed = 1}), b = MakeRandomLayer(spec, {.seed = 1});
  const auto c = MakeRandomLayer(spec, {.seed = 2});
  EXPECT_EQ(a->Fingerprint().value(), b->Fingerprint().value());
  EXPECT_NE(a->Fingerprint().value(), c->Fingerprint().value());
  const double before = a->expert(0).gate.At(0, 0);
  a->Release(0);
  EXPECT_EQ(a->expert(0).gate.At(0, 0), before);
}

}  // namespace
}  // namespace expertd::testing
