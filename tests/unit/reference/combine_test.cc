#include <cmath>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// Two rows of three slots over four expert rows; small integers, so that f32 is exact.
struct Combine {
  std::int64_t n = 2, d = 2, k = 3, r = 4;
  std::vector<float> expert_out = {1, 2, 3, 4, 5, 6, 7, 8};
  std::vector<std::int32_t> slot_row = {3, -1, 0, -1, -1, 2};
  std::vector<float> weights = {2, 9, 3, 9, 9, 0.5};
  std::vector<float> grad_out = {1, -2, 4, 8};

  std::vector<float> Forward(const float* w) const {
    std::vector<float> out(n * d, -9);
    EXPECT_TRUE(FusedGatherReduce({.n = n,
                                   .d = d,
                                   .k = k,
                                   .r = r,
                                   .dtype = DType::kF32,
                                   .out_dtype = DType::kF32,
                                   .expert_out = expert_out.data(),
                                   .slot_row = slot_row.data(),
                                   .weights = w,
                                   .out = out.data()})
                    .ok());
    return out;
  }
  double Loss() const {
    const std::vector<float> out = Forward(weights.data());
    double loss = 0;
    for (std::size_t i = 0; i < out.size(); ++i) loss += out[i] * grad_out[i];
    return loss;
  }
};

TEST(FusedGatherReduceTest, SumsWeightedAndSkips) {
  const Combine c;
  EXPECT_THAT(c.Forward(c.weights.data()), ElementsAre(2 * 7 + 3 * 1, 2 * 8 + 3 * 2, 2.5, 3));
  EXPECT_THAT(c.Forward(nullptr), ElementsAre(8, 10, 5, 6));
}

TEST(FusedGatherReduceTest, RowsWithoutSlotsAreZeroAndUnnamedRowsAreNotRead) {
  Combine c;
  c.slot_row.assign(6, -1);
  c.expert_out.assign(8, NAN);
  EXPECT_THAT(c.Forward(c.weights.data()), Each(0));
}

TEST(FusedGatherReduceTest, RefusesRowsOutOfRange) {
  Combine c;
  float out[4];
  const absl::Status status = FusedGatherReduce({.n = 2,
                                                 .d = 2,
                                                 .k = 3,
                                                 .r = 3,
                                                 .dtype = DType::kF32,
                                                 .out_dtype = DType::kF32,
                                                 .expert_out = c.expert_out.data(),
                                                 .slot_row = c.slot_row.data(),
                                                 .out = out});
  EXPECT_EQ(status.message(), "slot_row[0]: 3 is outside -1..2");
}

// The sum is linear in expert_out and in weights: a central difference of step 1 is the gradient itself.
TEST(FusedWeightedScatterTest, IsTheGradientByExpertOutputs) {
  Combine c;
  std::vector<float> grad(c.r * c.d, -9);
  ASSERT_TRUE(FusedWeightedScatter({.n = c.n,
                                    .d = c.d,
                                    .k = c.k,
                                    .r = c.r,
                                    .dtype = DType::kF32,
                                    .grad_out = c.grad_out.data(),
                                    .slot_row = c.slot_row.data(),
                                    .weights = c.weights.data(),
                                    .grad_expert = grad.data()})
                  .ok());
  for (std::size_t i = 0; i < grad.size(); ++i) {
    Combine up = c, down = c;
    up.expert_out[i] += 1;
    down.expert_out[i] -= 1;
    EXPECT_EQ(grad[i], (up.Loss() - down.Loss()) / 2) << i;
  }
}

TEST(FusedWeightedScatterTest, RefusesARowThatIsNamedTwice) {
  Combine c;
  c.slot_row[1] = 3;
  std::vector<float> grad(c.r * c.d);
  const absl::Status status = FusedWeightedScatter({.n = c.n,
                                                    .d = c.d,
                                                    .k = c.k,
                                                    .r = c.r,
                                                    .dtype = DType::kF32,
                                                    .grad_out = c.grad_out.data(),
                                                    .slot_row = c.slot_row.data(),
                                                    .grad_expert = grad.data()});
  EXPECT_EQ(status.message(), "slot_row[1]: 3 stands there twice");
}

TEST(FusedRoutingWeightGradTest, IsTheGradientByWeights) {
  Combine c;
  std::vector<float> grad(c.n * c.k, -9);
  ASSERT_TRUE(FusedRoutingWeightGrad({.n = c.n,
                                      .d = c.d,
                                      .k = c.k,
                                      .r = c.r,
                                      .dtype = DType::kF32,
                                      .expert_out = c.expert_out.data(),
                                      .grad_out = c.grad_out.data(),
                                      .slot_row = c.slot_row.data(),
                                      .grad_weights = grad.data()})
                  .ok());
  for (std::size_t i = 0; i < grad.size(); ++i) {
    Combine up = c, down = c;
    up.weights[i] += 1;
    down.weights[i] -= 1;
    EXPECT_EQ(grad[i], (up.Loss() - down.Loss()) / 2) << i;
  }
}

}  // namespace
}  // namespace expertd::reference
