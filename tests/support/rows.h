// Rows of hidden states in host memory, and how tests compare them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "absl/types/span.h"
#include "kernels/tensor.h"

namespace expertd::testing {

// A dense [n, d] matrix of kBF16 or kF32 that owns its memory.
class Rows {
 public:
  Rows() = default;
  // Every byte 0xa5: a finite bf16 and f32 that no result equals by chance, so that unwritten elements show.
  static Rows Poisoned(std::int64_t n, std::int64_t d, DType dtype);
  // Mean 0, variance 1. Row i of a seed is the same for every n.
  static Rows Random(std::int64_t n, std::int64_t d, DType dtype, std::uint64_t seed);

  std::int64_t n() const { return n_; }
  std::int64_t d() const { return d_; }
  DType dtype() const { return dtype_; }
  std::size_t row_bytes() const { return static_cast<std::size_t>(BytesOf(dtype_, d_)); }
  std::byte* row(std::int64_t i) { return bytes_.data() + static_cast<std::size_t>(i) * row_bytes(); }
  const std::byte* row(std::int64_t i) const { return bytes_.data() + static_cast<std::size_t>(i) * row_bytes(); }

  double At(std::int64_t i, std::int64_t j) const;
  void Set(std::int64_t i, std::int64_t j, float value);
  // Rows [first, first + count) as they are.
  Rows Slice(std::int64_t first, std::int64_t count) const;
  std::vector<double> ToDoubles() const;

  bool operator==(const Rows&) const = default;  // of bits

 private:
  Rows(std::int64_t n, std::int64_t d, DType dtype);
  std::int64_t n_ = 0, d_ = 0;
  DType dtype_ = DType::kBF16;
  std::vector<std::byte> bytes_;
};

// ||got - want|| / ||want||, or ||got|| when want is zero. Infinite when the sizes differ or any difference is not
// finite.
double RelativeError(absl::Span<const double> got, absl::Span<const double> want);

}  // namespace expertd::testing
