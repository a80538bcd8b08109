#include "kernels/reference/fp8_rows.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "kernels/tensor.h"
#include "tests/support/random.h"

namespace expertd::reference {
namespace {

using ::testing::Each;
using ::testing::ElementsAre;

// By trying all codes; a tie goes to the even one.
double NearestE4M3(double value) {
  int nearest = 0;
  const auto distance = [&](int code) { return std::abs(F8E4M3ToF32(static_cast<std::uint8_t>(code)) - value); };
  for (int code = 1; code < 0x7f; ++code) {
    if (distance(code) < distance(nearest) || (distance(code) == distance(nearest) && code % 2 == 0)) nearest = code;
  }
  return F8E4M3ToF32(static_cast<std::uint8_t>(nearest));
}

TEST(Fp8RowsTest, EachLineHasAScaleOfItsOwn) {
  std::vector<double> rows(200);  // lines of 128 and 72
  rows[0] = 448, rows[1] = 17, rows[2] = -1.0 / 512;
  rows[128] = 449.0 / 1024, rows[129] = 1.0;
  QuantiseFp8Rows(200, rows);
  EXPECT_THAT((std::vector<double>{rows[0], rows[1], rows[2]}), ElementsAre(448, 16, -1.0 / 512));
  EXPECT_THAT((std::vector<double>{rows[128], rows[129]}), ElementsAre(0.4375, 1.0));
}

TEST(Fp8RowsTest, EveryElementIsTheNearestCode) {
  testing::Random random(3);
  for (const double most : {1.75, 1.7578125, 448.0, 3.0e-5, 1.0e30}) {
    std::vector<double> row(128);
    for (double& value : row) value = Bf16ToF32(F32ToBf16(static_cast<float>(random.Uniform() * most)));
    row[7] = Bf16ToF32(F32ToBf16(static_cast<float>(most)));
    const std::vector<double> before = row;
    QuantiseFp8Rows(128, row);
    double scale = 1;
    while (row[7] / scale > 448) scale *= 2;
    while (row[7] / scale <= 224) scale /= 2;
    for (std::size_t i = 0; i < row.size(); ++i) {
      ASSERT_EQ(row[i], NearestE4M3(before[i] / scale) * scale) << most << ' ' << i;
    }
  }
}

TEST(Fp8RowsTest, WhatIsNotANumberMakesItsLineNan) {
  for (const double value : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    std::vector<double> rows(256, 1.0);
    rows[5] = value;
    QuantiseFp8Rows(256, rows);
    EXPECT_THAT((std::vector<double>{rows.begin(), rows.begin() + 128}), Each(::testing::IsNan()));
    EXPECT_THAT((std::vector<double>{rows.begin() + 128, rows.end()}), Each(1.0));
  }
  std::vector<double> zeros(128);
  QuantiseFp8Rows(128, zeros);
  EXPECT_THAT(zeros, Each(0.0));
}

}  // namespace
}  // namespace expertd::reference
