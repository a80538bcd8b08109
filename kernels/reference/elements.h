// Arrays of any floating type, read and written as double: what lets one loop serve bf16, f32 and double alike.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/tensor.h"

namespace expertd::reference {

// Rounds once, to nearest even.
std::uint16_t DoubleToBf16(double value);

class In {
 public:
  In(const void* data, DType dtype) : data_(data), dtype_(dtype) {}
  In(const float* data) : data_(data), dtype_(DType::kF32) {}  // NOLINT: implicit by intent, as are the next two
  In(const double* data) : data_(data), is_double_(true) {}
  In(const std::vector<double>& values) : In(values.data()) {}

  bool empty() const { return data_ == nullptr; }
  double operator[](std::int64_t i) const {
    if (is_double_) return static_cast<const double*>(data_)[i];
    if (dtype_ == DType::kF32) return static_cast<const float*>(data_)[i];
    return Bf16ToF32(static_cast<const std::uint16_t*>(data_)[i]);
  }

 private:
  const void* data_;
  DType dtype_ = DType::kF32;
  bool is_double_ = false;
};

class Out {
 public:
  Out(void* data, DType dtype) : data_(data), dtype_(dtype) {}
  Out(float* data) : data_(data), dtype_(DType::kF32) {}  // NOLINT: implicit by intent, as are the next two
  Out(double* data) : data_(data), is_double_(true) {}
  Out(std::vector<double>& values) : Out(values.data()) {}

  void Set(std::int64_t i, double value) const {
    if (is_double_) {
      static_cast<double*>(data_)[i] = value;
    } else if (dtype_ == DType::kF32) {
      static_cast<float*>(data_)[i] = static_cast<float>(value);
    } else {
      static_cast<std::uint16_t*>(data_)[i] = DoubleToBf16(value);
    }
  }

 private:
  void* data_;
  DType dtype_ = DType::kF32;
  bool is_double_ = false;
};

}  // namespace expertd::reference
