#include "tests/support/rows.h"

#include <cmath>
#include <cstring>
#include <limits>

#include "tests/support/random.h"

namespace expertd::testing {

Rows::Rows(std::int64_t n, std::int64_t d, DType dtype)
    : n_(n), d_(d), dtype_(dtype), bytes_(static_cast<std::size_t>(n * BytesOf(dtype, d)), std::byte{0xa5}) {}

Rows Rows::Poisoned(std::int64_t n, std::int64_t d, DType dtype) { return Rows(n, d, dtype); }

Rows Rows::Random(std::int64_t n, std::int64_t d, DType dtype, std::uint64_t seed) {
  Rows rows(n, d, dtype);
  for (std::int64_t i = 0; i < n; ++i) {
    expertd::testing::Random random(seed, static_cast<std::uint64_t>(i));
    for (std::int64_t j = 0; j < d; ++j) rows.Set(i, j, random.Normal());
  }
  return rows;
}

double Rows::At(std::int64_t i, std::int64_t j) const {
  if (dtype_ == DType::kF32) return reinterpret_cast<const float*>(row(i))[j];
  return Bf16ToF32(reinterpret_cast<const std::uint16_t*>(row(i))[j]);
}

void Rows::Set(std::int64_t i, std::int64_t j, float value) {
  if (dtype_ == DType::kF32) {
    reinterpret_cast<float*>(row(i))[j] = value;
  } else {
    reinterpret_cast<std::uint16_t*>(row(i))[j] = F32ToBf16(value);
  }
}

Rows Rows::Slice(std::int64_t first, std::int64_t count) const {
  Rows rows(count, d_, dtype_);
  if (count > 0) std::memcpy(rows.bytes_.data(), row(first), rows.bytes_.size());
  return rows;
}

std::vector<double> Rows::ToDoubles() const {
  std::vector<double> values;
  values.reserve(static_cast<std::size_t>(n_ * d_));
  for (std::int64_t i = 0; i < n_; ++i) {
    for (std::int64_t j = 0; j < d_; ++j) values.push_back(At(i, j));
  }
  return values;
}

double RelativeError(absl::Span<const double> got, absl::Span<const double> want) {
  if (got.size() != want.size()) return std::numeric_limits<double>::infinity();
  double difference = 0, norm = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    difference += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  const double error = std::sqrt(norm > 0 ? difference / norm : difference);
  return std::isfinite(error) ? error : std::numeric_limits<double>::infinity();
}

}  // namespace expertd::testing
