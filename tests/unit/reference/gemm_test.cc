#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/ops.h"
#include "tests/support/random.h"
#include "tests/support/rows.h"

namespace expertd::reference {
namespace {

using ::testing::ElementsAre;

TEST(MoeGroupedGemmTest, MultipliesEachGroupByItsExpert) {
  const float x[] = {1, 2, 3, 4};               // two rows of 2
  const float w[] = {1, 0, 0, 1, 1, 1, 1, -1};  // two experts of [2, 2]
  const std::int32_t gather[] = {1, -1, 0, 1};
  const std::int32_t offsets[] = {0, 2, 4};
  std::vector<float> out(8, -9);
  ASSERT_TRUE(MoeGroupedGemm({.positions = 4,
                              .e = 2,
                              .in = 2,
                              .out_features = 2,
                              .dtype = DType::kF32,
                              .x = x,
                              .gather = gather,
                              .offsets = offsets,
                              .w = w,
                              .out = out.data()})
                  .ok());
  EXPECT_THAT(out, ElementsAre(3, 4, -9, -9, 3, -1, 7, -1));
}

TEST(MoeGroupedGemmTest, RefusesOffsetsThatDecreaseOrOverrun) {
  const float zero[8] = {};
  float out[8];
  const std::int32_t decreasing[] = {0, 2, 1}, beyond[] = {0, 2, 5};
  MoeGroupedGemmArgs args{.positions = 4,
                          .e = 2,
                          .in = 1,
                          .out_features = 1,
                          .dtype = DType::kF32,
                          .x = zero,
                          .offsets = decreasing,
                          .w = zero,
                          .out = out};
  EXPECT_EQ(MoeGroupedGemm(args).message(), "offsets[2]: 1 is outside 2..4");
  args.offsets = beyond;
  EXPECT_EQ(MoeGroupedGemm(args).message(), "offsets[2]: 5 is outside 2..4");
}

TEST(MoeWeightGradTest, SumsOuterProductsAndZeroesEmptyExperts) {
  const float grad_out[] = {1, 2, 3};       // [3, 1]
  const float x[] = {1, 10, 2, 20, 3, 30};  // [3, 2]
  const std::int32_t offsets[] = {0, 2, 2, 3};
  std::vector<float> grad_w(6, -9);
  ASSERT_TRUE(MoeWeightGrad({.positions = 3,
                             .e = 3,
                             .in = 2,
                             .out_features = 1,
                             .dtype = DType::kF32,
                             .grad_out = grad_out,
                             .x = x,
                             .offsets = offsets,
                             .grad_w = grad_w.data()})
                  .ok());
  EXPECT_THAT(grad_w, ElementsAre(5, 50, 0, 0, 9, 90));
}

// Against loops written out again.
TEST(FusedMoeForwardTest, EqualsItsFormula) {
  constexpr std::int64_t kN = 5, kD = 7, kE = 4, kK = 2, kF = 3, kSlots = kN * kK;
  for (const bool on_input : {false, true}) {
    for (const DType dtype : {DType::kF32, DType::kBF16}) {
      using expertd::testing::Rows;
      const Rows rows = Rows::Random(kN, kD, dtype, 1), gate_up = Rows::Random(kE * 2 * kF, kD, dtype, 2);
      const Rows down = Rows::Random(kE * kD, kF, dtype, 3);
      const std::vector<std::int32_t> ids = {0, 3, 3, 1, -1, 3, 0, 1, -1, -1};
      std::vector<float> weights;
      expertd::testing::Random random(4);
      for (int s = 0; s < kSlots; ++s) weights.push_back(random.Normal());

      std::vector<double> want(kN * kD);
      for (std::int64_t s = 0; s < kSlots; ++s) {
        if (ids[s] < 0) continue;
        Rows x = rows.Slice(s / kK, 1);
        for (std::int64_t j = 0; on_input && j < kD; ++j) x.Set(0, j, static_cast<float>(x.At(0, j) * weights[s]));
        const Rows w1 = gate_up.Slice(ids[s] * 2 * kF, 2 * kF), w2 = down.Slice(ids[s] * kD, kD);
        std::vector<double> both(2 * kF);
        for (std::int64_t o = 0; o < 2 * kF; ++o) {
          for (std::int64_t i = 0; i < kD; ++i) both[o] += x.At(0, i) * w1.At(o, i);
        }
        Rows h = Rows::Poisoned(1, kF, dtype);
        for (std::int64_t j = 0; j < kF; ++j) {
          h.Set(0, j, static_cast<float>(both[j] / (1 + std::exp(-both[j])) * both[kF + j]));
        }
        for (std::int64_t o = 0; o < kD; ++o) {
          double y = 0;
          for (std::int64_t j = 0; j < kF; ++j) y += h.At(0, j) * w2.At(o, j);
          want[s / kK * kD + o] += (on_input ? 1.0 : weights[s]) * y;
        }
      }
      Rows out = Rows::Poisoned(kN, kD, DType::kF32);
      ASSERT_TRUE(FusedMoeForward({.n = kN,
                                   .d = kD,
                                   .e = kE,
                                   .k = kK,
                                   .f = kF,
                                   .weight_on_input = on_input,
                                   .dtype = dtype,
                                   .out_dtype = DType::kF32,
                                   .rows = rows.row(0),
                                   .ids = ids.data(),
                                   .weights = weights.data(),
                                   .gate_up = gate_up.row(0),
                                   .down = down.row(0),
                                   .out = out.row(0)})
                      .ok());
      EXPECT_LT(expertd::testing::RelativeError(out.ToDoubles(), want), 1e-6);
      for (std::int64_t j = 0; j < kD; ++j) EXPECT_EQ(out.At(4, j), 0.0) << "a row without experts is zero";
    }
  }
}

}  // namespace
}  // namespace expertd::reference
