// What host and device code of the CUDA operations share: plain enumerators, so that .cu files see neither Abseil nor
// the engine's headers. The host side (host.h) translates.
#pragma once

#include <cstdint>

namespace expertd::cuda {

// Element type of rows and weights.
enum class Element : std::uint8_t { kBF16, kF32 };

// expertd::Activation, value for value (checked in host.cc).
enum class Gate : std::uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kSwigluOai };

constexpr int SizeOf(Element element) { return element == Element::kBF16 ? 2 : 4; }

// Elements of one 16-byte access.
constexpr int VectorElements(Element element) { return 16 / SizeOf(element); }

constexpr std::int64_t CeilDiv(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// What a configuration choice needs to know of the device.
struct DeviceLimits {
  int multiprocessors = 0;
  int shared_bytes_per_block = 0;  // with opt-in
  int compute_capability = 0;      // 10 * major + minor
};

}  // namespace expertd::cuda
