// Random numbers that are equal on every machine and standard library.
#pragma once

#include <cmath>
#include <cstdint>

namespace expertd::testing {

// splitmix64 (Steele, Lea, Flood 2014).
class Random {
 public:
  explicit Random(std::uint64_t seed, std::uint64_t stream = 0)
      : state_(seed * 0x9e3779b97f4a7c15u ^ Mix(stream + 1)) {}

  std::uint64_t Next() { return Mix(state_ += 0x9e3779b97f4a7c15u); }
  // In [0, limit), limit > 0.
  std::int64_t Below(std::int64_t limit) {
    return static_cast<std::int64_t>((Next() >> 32) * static_cast<std::uint64_t>(limit) >> 32);
  }
  // In [0, 1).
  double Uniform() { return static_cast<double>(Next() >> 11) * 0x1p-53; }
  // Mean 0, variance 1: the sum of four uniform 16-bit numbers. Cheap, near normal, and never beyond +-3.5.
  float Normal() {
    const std::uint64_t bits = Next();
    const auto sum = static_cast<float>((bits & 0xffff) + (bits >> 16 & 0xffff) + (bits >> 32 & 0xffff) + (bits >> 48));
    return (sum - 131070.0f) * 2.6428806e-5f;  // sqrt(3) / 65536
  }

 private:
  static constexpr std::uint64_t Mix(std::uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::uint64_t state_;
};

}  // namespace expertd::testing
