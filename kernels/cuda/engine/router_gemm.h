// The router's logits: f32 products of rows and router weights in one order of K, for plain callers.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// out[n, e] = sum over d of x[n, d] * w[e, d], + bias[e].
struct RouterGemmLaunch {
  std::int64_t n = 0, e = 0, d = 0;
  Element element = Element::kBF16;
  const void* x = nullptr;      // [n, d]
  const float* w = nullptr;     // [e, d]
  const float* bias = nullptr;  // [e] or null
  float* partial = nullptr;     // RouterPartials(n, e, d) floats of scratch
  float* out = nullptr;         // [n, e]
};

// Every sum is: chunks of K, each one chain of fused multiply-adds, added up in order. The chunks depend on D alone.
constexpr std::int64_t RouterChunk(std::int64_t d) {
  const std::int64_t sixteenth = CeilDiv(CeilDiv(d, 16), 64) * 64;
  return sixteenth < 256 ? 256 : sixteenth;
}
// Batches of few tiles share out their chunks among blocks and add them up in a second kernel, with the same result.
inline constexpr std::int64_t kRouterTile = 64;  // rows, and experts
inline constexpr std::int64_t kRouterSplitTiles = 256;
constexpr bool RouterSplits(std::int64_t n, std::int64_t e) {
  return CeilDiv(n, kRouterTile) * CeilDiv(e, kRouterTile) < kRouterSplitTiles;
}
// Scratch that serves every batch of up to n rows.
constexpr std::int64_t RouterPartials(std::int64_t n, std::int64_t e, std::int64_t d) {
  const std::int64_t most = (kRouterSplitTiles - 1) / CeilDiv(e, kRouterTile) * kRouterTile;
  return (n < most ? n : most) * e * CeilDiv(d, RouterChunk(d));
}

// Enqueues one kernel, or two, on `stream` (a cudaStream_t); the answer is a cudaError_t.
int LaunchRouterGemm(const RouterGemmLaunch& launch, void* stream);

}  // namespace expertd::cuda
