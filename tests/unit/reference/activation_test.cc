#include <cmath>
#include <vector>

#include "gtest/gtest.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"
#include "tests/support/random.h"

namespace expertd::reference {
namespace {

constexpr Activation kAll[] = {Activation::kSilu, Activation::kGelu,  Activation::kGeluTanh,
                               Activation::kRelu, Activation::kRelu2, Activation::kSwigluOai};

class ActivationTest : public ::testing::TestWithParam<Activation> {};
INSTANTIATE_TEST_SUITE_P(, ActivationTest, ::testing::ValuesIn(kAll),
                         [](const auto& info) { return std::string(ActivationName(info.param)); });

struct KnownValue {
  Activation activation;
  double gate, up, want;
};

TEST(ActivationValuesTest, MatchKnownValues) {
  const KnownValue kValues[] = {
      {Activation::kSilu, 1.0, 2.0, 1.4621171572600098},      // 2 / (1 + 1/e)
      {Activation::kSilu, -800.0, 2.0, 0.0},                  // exp overflows on the way
      {Activation::kGelu, 1.0, 3.0, 3 * 0.8413447460685429},  // the normal distribution function at 1
      {Activation::kGelu, -1.0, 3.0, -3 * 0.15865525393145705},
      {Activation::kGeluTanh, 1.0, 1.0, 0.8411919906082768},
      {Activation::kRelu, -1.0, 5.0, 0.0},
      {Activation::kRelu, 2.0, 5.0, 10.0},
      {Activation::kRelu2, 3.0, 2.0, 18.0},
      {Activation::kSwigluOai, 1.0, 2.0, 3.0 / (1.0 + std::exp(-1.702))},
      {Activation::kSwigluOai, 9.0, 9.0, 8.0 * 7.0 / (1.0 + std::exp(-1.702 * 7.0))},
      {Activation::kSwigluOai, -9.0, -9.0, -6.0 * -9.0 / (1.0 + std::exp(1.702 * 9.0))},
  };
  for (const KnownValue& v : kValues) {
    EXPECT_NEAR(GatedActivation{v.activation}(v.gate, v.up), v.want, 1e-12) << ActivationName(v.activation);
  }
}

TEST_P(ActivationTest, PassesNanThrough) {
  EXPECT_TRUE(std::isnan(GatedActivation{GetParam()}(std::nan(""), 1.0)));
  EXPECT_TRUE(std::isnan(GatedActivation{GetParam()}(1.0, std::nan(""))));
}

TEST_P(ActivationTest, DerivativeIsTheCentralDifference) {
  const GatedActivation f{GetParam()};
  expertd::testing::Random random(3);
  constexpr double kStep = 1e-5;
  for (int i = 0; i < 300; ++i) {
    const double gate = 5.0 * random.Normal(), up = 5.0 * random.Normal();
    const bool kink = std::fabs(gate) < 1e-3 || std::fabs(gate - 7) < 1e-3 || std::fabs(std::fabs(up) - 7) < 1e-3;
    if (kink) continue;
    const GatedActivation::Partials d = f.Derivative(gate, up);
    EXPECT_NEAR(d.gate, (f(gate + kStep, up) - f(gate - kStep, up)) / (2 * kStep), 1e-7) << gate << " " << up;
    EXPECT_NEAR(d.up, (f(gate, up + kStep) - f(gate, up - kStep)) / (2 * kStep), 1e-7) << gate << " " << up;
  }
}

// Both layouts, both element types, against the scalar function; grad_in in the place of in.
TEST_P(ActivationTest, OpsAgreeWithTheScalarFunction) {
  const GatedActivation f{GetParam(), 7.0f, 1.702f};
  for (const std::int64_t features : {1, 2, 33}) {
    for (const bool interleaved : {false, true}) {
      constexpr std::int64_t kRows = 3;
      expertd::testing::Random random(features);
      std::vector<float> in(kRows * 2 * features), grad_out(kRows * features), out(kRows * features, NAN);
      for (float& x : in) x = 4 * random.Normal();
      for (float& x : grad_out) x = random.Normal();
      const std::vector<float> saved = in;
      ASSERT_TRUE(ActivationForward({.m = kRows,
                                     .f = features,
                                     .activation = GetParam(),
                                     .interleaved = interleaved,
                                     .dtype = DType::kF32,
                                     .in = in.data(),
                                     .out = out.data()})
                      .ok());
      ASSERT_TRUE(ActivationBackward({.m = kRows,
                                      .f = features,
                                      .activation = GetParam(),
                                      .interleaved = interleaved,
                                      .dtype = DType::kF32,
                                      .grad_out = grad_out.data(),
                                      .in = in.data(),
                                      .grad_in = in.data()})
                      .ok());
      for (std::int64_t i = 0; i < kRows; ++i) {
        for (std::int64_t j = 0; j < features; ++j) {
          const std::int64_t gate = i * 2 * features + (interleaved ? 2 * j : j),
                             up = gate + (interleaved ? 1 : features);
          const std::int64_t at = i * features + j;
          const GatedActivation::Partials d = f.Derivative(saved[gate], saved[up]);
          EXPECT_EQ(out[at], static_cast<float>(f(saved[gate], saved[up])));
          EXPECT_EQ(in[gate], static_cast<float>(grad_out[at] * d.gate));
          EXPECT_EQ(in[up], static_cast<float>(grad_out[at] * d.up));
        }
      }
    }
  }
}

TEST(ActivationOpTest, Bf16RoundsOnce) {
  const std::uint16_t in[2] = {F32ToBf16(1.5f), F32ToBf16(1.25f)};
  std::uint16_t out = 0;
  ASSERT_TRUE(ActivationForward({.m = 1, .f = 1, .in = in, .out = &out}).ok());
  EXPECT_EQ(out, DoubleToBf16(GatedActivation{}(1.5, 1.25)));
}

}  // namespace
}  // namespace expertd::reference
