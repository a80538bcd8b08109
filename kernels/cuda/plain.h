// What host and device code of the CUDA operations share: plain enumerators, so that .cu files see neither Abseil nor
// the engine's headers. The host side (host.h) translates.
#pragma once

#include <cstdint>

namespace expertd::cuda {

// Element type of rows and weights.
enum class Element : std::uint8_t { kBF16, kF32 };

// expertd::Activation, value for value (checked in host.cc).
enum class Gate : std::uint8_t { kSilu, kGelu, kGeluTanh, kRelu, kRelu2, kSwigluOai };

// How a matrix of weights lies in device memory, [out, in] for each expert. Those with scales are computed exactly to
// their dequantised values.
enum class WeightCode : std::uint8_t {
  kElement,  // as the rows that it meets
  kBF16,
  kF16,
  kF32,
  kFp8,      // e4m3; scales f32 [out, ceil(in / 128)]: the checkpoint's 128 x 128 blocks, repeated for each row
  kMxfp4,    // e2m1, two a byte, low nibble first; scales e8m0 [out, in / 32]
  kFp8Both,  // as kFp8, to meet rows that are quantised to e4m3 too: only packed (hopper/packed_weights.h)
};

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
