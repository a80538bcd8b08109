#include "kernels/checkpoint/synth_fill.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "kernels/tensor.h"

namespace expertd {
namespace {

constexpr int kValues = 4096;

// Codes have this deviation, and their scale makes it sigma: far enough from the largest code, 448 and 6.
constexpr double kFp8Sigma = 64;
constexpr double kMxfp4Sigma = 2;

// The middle of each of kValues equally likely slices of the standard normal distribution.
const std::vector<double>& NormalQuantiles() {
  static const std::vector<double> quantiles = [] {
    std::vector<double> result(kValues);
    for (int i = 0; i < kValues; ++i) {
      const double wanted = (i + 0.5) / kValues;
      double low = -5, high = 5;
      while (high - low > 1e-9) {
        const double middle = (low + high) / 2;
        (0.5 * std::erfc(-middle / std::sqrt(2.0)) < wanted ? low : high) = middle;
      }
      result[static_cast<std::size_t>(i)] = low;
    }
    return result;
  }();
  return quantiles;
}

// The codes of kValues normal values of deviation `sigma`: each the nearest of the `positive` first codes, by
// magnitude, with the value's sign in `sign_bit`.
template <class Decode>
std::vector<std::uint32_t> NormalCodes(double sigma, int positive, std::uint32_t sign_bit, Decode decode) {
  std::vector<std::uint32_t> result;
  for (const double normal : NormalQuantiles()) {
    const double wanted = std::abs(normal * sigma);
    const auto distance = [&](int code) { return std::abs(decode(static_cast<std::uint8_t>(code)) - wanted); };
    int best = 0;  // magnitudes ascend with the code
    while (best + 1 < positive && distance(best + 1) <= distance(best)) ++best;
    result.push_back(static_cast<std::uint32_t>(best) | (normal < 0 ? sign_bit : 0));
  }
  return result;
}

template <class F>
std::vector<std::uint32_t> ForEachValue(F code_of) {
  std::vector<std::uint32_t> result(kValues);
  for (int i = 0; i < kValues; ++i) result[static_cast<std::size_t>(i)] = code_of(i);
  return result;
}

// The bits of each of the kValues values that the tensor's elements take.
std::vector<std::uint32_t> CodesOf(const SynthTensor& tensor) {
  const auto& quantiles = NormalQuantiles();
  switch (tensor.fill) {
    case SynthFill::kNormal:
      return ForEachValue([&](int i) -> std::uint32_t {
        const auto value = static_cast<float>(quantiles[static_cast<std::size_t>(i)] * tensor.sigma);
        return tensor.info.dtype == DType::kF32 ? std::bit_cast<std::uint32_t>(value) : F32ToBf16(value);
      });
    case SynthFill::kFp8Codes: {
      static const auto codes = NormalCodes(kFp8Sigma, 0x7f, 0x80, F8E4M3ToF32);  // 0x7f is NaN
      return codes;
    }
    case SynthFill::kFp8Scales:  // they differ, so that a scale taken from a wrong block shows
      return ForEachValue([&](int i) {
        const double spread = 0.75 + 0.5 * (i + 0.5) / kValues;
        return std::bit_cast<std::uint32_t>(static_cast<float>(tensor.sigma / kFp8Sigma * spread));
      });
    case SynthFill::kMxfp4Codes: {
      static const auto codes = NormalCodes(kMxfp4Sigma, 8, 8, F4E2M1ToF32);
      return codes;
    }
    case SynthFill::kMxfp4Scales:
      return ForEachValue([&](int i) {
        const int exponent = static_cast<int>(std::floor(std::log2(tensor.sigma / kMxfp4Sigma))) + i % 2;
        return static_cast<std::uint32_t>(std::clamp(127 + exponent, 0, 254));
      });
  }
  return {};
}

// The finaliser of splitmix64 (Steele, Lea and Flood, 2014): every bit of the result depends on every bit of x.
std::uint64_t Mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Values [first, ...) of type T: `code` makes each from 16 random bits, four of them from one number of Mix.
template <class T, class Code>
void Generate(std::uint64_t key, std::int64_t first, absl::Span<std::byte> out, Code code) {
  constexpr std::int64_t kEach = 4;
  const auto count = static_cast<std::int64_t>(out.size() / sizeof(T));
  std::byte* to = out.data();
  for (std::int64_t i = 0; i < count; i += kEach) {
    const std::uint64_t bits = Mix(key + static_cast<std::uint64_t>((first + i) / kEach) * 0x9e3779b97f4a7c15u);
    T values[kEach];
    for (std::int64_t j = 0; j < kEach; ++j) values[j] = code(static_cast<std::uint32_t>(bits >> (16 * j)) & 0xffffu);
    const auto size = static_cast<std::size_t>(std::min(kEach, count - i)) * sizeof(T);
    std::memcpy(to, values, size);
    to += size;
  }
}

}  // namespace

SynthFiller::SynthFiller(const SynthTensor& tensor, std::uint64_t key)
    : fill_(tensor.fill),
      bytes_each_(tensor.fill == SynthFill::kMxfp4Codes ? 1 : BitsOf(tensor.info.dtype) / 8),
      key_(Mix(key)),
      codes_(CodesOf(tensor)) {}

void SynthFiller::Fill(std::int64_t first, absl::Span<std::byte> out) const {
  const std::uint32_t* codes = codes_.data();
  const std::int64_t value = first / bytes_each_;
  if (fill_ == SynthFill::kMxfp4Codes) {
    // 8 of the 16 bits choose each nibble, so 256 of the 4096 values are in use.
    Generate<std::uint8_t>(key_, value, out, [codes](std::uint32_t bits) {
      const std::uint32_t low = codes[(bits & 255) * 16 + 8], high = codes[(bits >> 8) * 16 + 8];
      return static_cast<std::uint8_t>(low | high << 4);
    });
  } else if (bytes_each_ == 1) {
    Generate<std::uint8_t>(key_, value, out,
                           [codes](std::uint32_t bits) { return static_cast<std::uint8_t>(codes[bits >> 4]); });
  } else if (bytes_each_ == 2) {
    Generate<std::uint16_t>(key_, value, out,
                            [codes](std::uint32_t bits) { return static_cast<std::uint16_t>(codes[bits >> 4]); });
  } else {
    Generate<std::uint32_t>(key_, value, out, [codes](std::uint32_t bits) { return codes[bits >> 4]; });
  }
}

}  // namespace expertd
