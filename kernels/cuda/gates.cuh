// The gated activations and their derivatives in f32. The fast exponential is within 2^-21 of the exact one where its
// result matters, far inside one bf16 rounding.
#pragma once

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// What one element's forward and backward need to know.
struct GateParams {
  Gate gate;
  float limit, alpha;
};

// Comparisons that let NaN through, which fminf and fmaxf drop.
__device__ inline float AtMost(float x, float limit) { return x > limit ? limit : x; }
__device__ inline float AtLeast(float x, float limit) { return x < limit ? limit : x; }

__device__ inline float Sigmoid(float x) { return __fdividef(1.0f, 1.0f + __expf(-x)); }

// act(g) * u
template <Gate kGate>
__device__ inline float Activate(float g, float u, const GateParams& params) {
  if constexpr (kGate == Gate::kSilu) return g * Sigmoid(g) * u;
  if constexpr (kGate == Gate::kGelu) return 0.5f * g * (1.0f + erff(g * 0.70710678f)) * u;
  if constexpr (kGate == Gate::kGeluTanh) {
    return g * Sigmoid(1.59576912f * (g + 0.044715f * g * g * g)) * u;  // (1 + tanh(z)) / 2 = sigmoid(2 z)
  }
  if constexpr (kGate == Gate::kRelu) return AtLeast(g, 0.0f) * u;
  if constexpr (kGate == Gate::kRelu2) return AtLeast(g, 0.0f) * AtLeast(g, 0.0f) * u;
  if constexpr (kGate == Gate::kSwigluOai) {
    const float c = AtMost(g, params.limit);
    return (AtMost(AtLeast(u, -params.limit), params.limit) + 1.0f) * c * Sigmoid(params.alpha * c);
  }
}

struct GateGrad {
  float gate, up;
};

// d(act(g) * u) / d(g, u), times `grad`. Outside a clamp the derivative is zero; on its edge it passes.
template <Gate kGate>
__device__ inline GateGrad ActivateGrad(float grad, float g, float u, const GateParams& params) {
  if constexpr (kGate == Gate::kSilu) {
    const float s = Sigmoid(g);
    return {grad * u * s * (1.0f + g * (1.0f - s)), grad * g * s};
  }
  if constexpr (kGate == Gate::kGelu) {
    const float cdf = 0.5f * (1.0f + erff(g * 0.70710678f));
    return {grad * u * (cdf + g * 0.39894228f * __expf(-0.5f * g * g)), grad * g * cdf};
  }
  if constexpr (kGate == Gate::kGeluTanh) {
    const float s = Sigmoid(1.59576912f * (g + 0.044715f * g * g * g));
    const float slope = 1.59576912f * (1.0f + 0.134145f * g * g);
    // s (1 - s) is exactly zero where the cubic has overflowed, so that slope may be infinite: drop it there.
    const float bend = s * (1.0f - s);
    return {grad * u * (s + (bend == 0.0f ? 0.0f : g * bend * slope)), grad * g * s};
  }
  if constexpr (kGate == Gate::kRelu) return {g > 0.0f ? grad * u : 0.0f, grad * AtLeast(g, 0.0f)};
  if constexpr (kGate == Gate::kRelu2) {
    const float r = AtLeast(g, 0.0f);
    return {grad * u * 2.0f * r, grad * r * r};
  }
  if constexpr (kGate == Gate::kSwigluOai) {
    const float c = AtMost(g, params.limit), s = Sigmoid(params.alpha * c);
    const float linear = AtMost(AtLeast(u, -params.limit), params.limit) + 1.0f;
    return {g <= params.limit ? grad * linear * s * (1.0f + params.alpha * c * (1.0f - s)) : 0.0f,
            fabsf(u) <= params.limit ? grad * c * s : 0.0f};
  }
}

}  // namespace expertd::cuda
