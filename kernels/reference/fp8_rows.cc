#include "kernels/reference/fp8_rows.h"

#include <algorithm>
#include <cmath>

#include "kernels/reference/elements.h"
#include "kernels/tensor.h"

namespace expertd::reference {
namespace {

constexpr std::int64_t kLine = 128;
constexpr double kMostE4M3 = 448.0;
constexpr int kLeastE4M3Exponent = -6, kLeastF32Exponent = -126, kMantissaBits = 3;

int Exponent(double value) {  // 2^Exponent <= |value| < 2^(Exponent + 1)
  int exponent = 0;
  std::frexp(value, &exponent);
  return exponent - 1;
}

// At most kMostE4M3; to nearest even.
double RoundToE4M3(double value) {
  const double step = std::ldexp(1.0, std::max(Exponent(value), kLeastE4M3Exponent) - kMantissaBits);
  return std::nearbyint(value / step) * step;
}

void QuantiseLine(double* line, std::int64_t count) {
  double most = 0;
  bool finite = true;
  for (std::int64_t i = 0; i < count; ++i) {
    line[i] = Bf16ToF32(DoubleToBf16(line[i]));
    finite = finite && std::isfinite(line[i]);
    most = std::max(most, std::abs(line[i]));
  }
  if (!finite) std::fill_n(line, count, std::nan(""));
  if (!finite || most == 0) return;
  int exponent = Exponent(most) - 8;
  if (most > std::ldexp(kMostE4M3, exponent)) ++exponent;
  const double scale = std::ldexp(1.0, std::max(exponent, kLeastF32Exponent));
  for (std::int64_t i = 0; i < count; ++i) line[i] = RoundToE4M3(line[i] / scale) * scale;
}

}  // namespace

void QuantiseFp8Rows(std::int64_t width, std::vector<double>& rows) {
  const auto size = static_cast<std::int64_t>(rows.size());
  for (std::int64_t row = 0; row < size; row += width) {
    for (std::int64_t i = 0; i < width; i += kLine) QuantiseLine(&rows[row + i], std::min(kLine, width - i));
  }
}

}  // namespace expertd::reference
