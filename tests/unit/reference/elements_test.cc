#include "kernels/reference/elements.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace expertd::reference {
namespace {

TEST(DoubleToBf16Test, RoundsOnceToNearestEven) {
  EXPECT_EQ(DoubleToBf16(1.0), 0x3f80);
  EXPECT_EQ(DoubleToBf16(1.0 + 0x1p-8), 0x3f80);            // a tie, to even
  EXPECT_EQ(DoubleToBf16(1.0 + 3 * 0x1p-8), 0x3f82);        // a tie, to even
  EXPECT_EQ(DoubleToBf16(1.0 + 0x1p-8 + 0x1p-40), 0x3f81);  // f32 would see a tie
  EXPECT_EQ(DoubleToBf16(-1.0 - 0x1p-8 - 0x1p-40), 0xbf81);
  EXPECT_EQ(DoubleToBf16(1.0 + 3 * 0x1p-8 - 0x1p-40), 0x3f81);
}

TEST(DoubleToBf16Test, KeepsSpecialValues) {
  EXPECT_EQ(DoubleToBf16(0.0), 0x0000);
  EXPECT_EQ(DoubleToBf16(-0.0), 0x8000);
  EXPECT_EQ(DoubleToBf16(std::numeric_limits<double>::infinity()), 0x7f80);
  EXPECT_EQ(DoubleToBf16(1e300), 0x7f80);
  EXPECT_TRUE(std::isnan(Bf16ToF32(DoubleToBf16(std::nan("")))));
}

TEST(ElementsTest, EveryTypeReadsBackWhatWasWritten) {
  std::uint16_t bf16[2];
  float f32[2];
  std::vector<double> f64(2);
  Out(bf16, DType::kBF16).Set(1, 1.5);
  Out(f32, DType::kF32).Set(1, 0.1);
  Out(f64).Set(1, 0.1);
  EXPECT_EQ(In(bf16, DType::kBF16)[1], 1.5);
  EXPECT_EQ(In(f32)[1], static_cast<double>(0.1f));
  EXPECT_EQ(In(f64)[1], 0.1);
  EXPECT_TRUE(In(static_cast<const float*>(nullptr)).empty());
}

// Every code of the small formats, by their definition.
TEST(SmallFormatsTest, DecodeByDefinition) {
  for (int code = 0; code < 256; ++code) {
    const auto byte = static_cast<std::uint8_t>(code);
    const int exponent = code >> 3 & 15, mantissa = code & 7;
    const double magnitude = exponent == 0 ? std::ldexp(mantissa, -9) : std::ldexp(8 + mantissa, exponent - 10);
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(F8E4M3ToF32(byte)));
    } else {
      EXPECT_EQ(F8E4M3ToF32(byte), code < 128 ? magnitude : -magnitude) << code;
      EXPECT_EQ(std::signbit(F8E4M3ToF32(byte)), code >= 128) << code;
    }
    if (code == 255) continue;
    EXPECT_EQ(E8M0ToF32(byte), std::ldexp(1.0, code - 127)) << code;
  }
  EXPECT_TRUE(std::isnan(E8M0ToF32(255)));
}

}  // namespace
}  // namespace expertd::reference
