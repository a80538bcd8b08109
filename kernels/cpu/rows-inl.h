// Everything but the products, as templates over a vector type: activations, the weighted sum of a row's slots, and
// conversions of rows.
#pragma once

#include "kernels/cpu/isa_kernels.h"
#include "kernels/layer_spec.h"

namespace expertd::cpu {
namespace {

// The highest power's coefficient first.
template <class V, int kCount>
typename V::F Polynomial(const float (&coefficients)[kCount], typename V::F x) {
  typename V::F sum = V::Set1(coefficients[0]);
  for (int i = 1; i < kCount; ++i) sum = V::Fma(sum, x, V::Set1(coefficients[i]));
  return sum;
}

// e^x with a relative error below 2e-7; x is clamped to [-87, 88], NaN stays NaN. x = n ln 2 + r, |r| <= ln 2 / 2, and
// the Taylor polynomial of e^r.
template <class V>
typename V::F Exp(typename V::F x) {
  x = V::Min(V::Set1(88.0f), V::Max(V::Set1(-87.0f), x));
  const typename V::F n = V::Round(V::Mul(x, V::Set1(1.44269504f)));
  typename V::F r = V::Fma(n, V::Set1(-0.693359375f), x);  // ln 2 in two parts, the first exact in few bits
  r = V::Fma(n, V::Set1(2.12194440e-4f), r);
  constexpr float kInverseFactorials[] = {1.0f / 5040, 1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  const typename V::F p = Polynomial<V>(kInverseFactorials, r);
  return V::Mul(p, V::PowerOfTwo(n));
}

template <class V>
typename V::F Sigmoid(typename V::F x) {
  const typename V::F one = V::Set1(1.0f);
  return V::Div(one, V::Add(one, Exp<V>(V::Sub(V::Set1(0.0f), x))));
}

// erfc of z >= 0 with an absolute error below 2e-7: Abramowitz and Stegun 7.1.26.
template <class V>
typename V::F Erfc(typename V::F z) {
  const typename V::F one = V::Set1(1.0f);
  const typename V::F t = V::Div(one, V::Fma(V::Set1(0.3275911f), z, one));
  constexpr float kCoefficients[] = {1.061405429f, -1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f};
  return V::Mul(V::Mul(Polynomial<V>(kCoefficients, t), t), Exp<V>(V::Mul(V::Sub(V::Set1(0.0f), z), z)));
}

template <class V, Activation kActivation>
typename V::F Gated(typename V::F gate, typename V::F up, const ActivateArgs& args) {
  using F = typename V::F;
  if constexpr (kActivation == Activation::kSilu) {
    return V::Mul(V::Mul(gate, Sigmoid<V>(gate)), up);
  } else if constexpr (kActivation == Activation::kGelu) {
    // x (1 + erf(x / sqrt 2)) / 2 = max(x, 0) - |x| erfc(|x| / sqrt 2) / 2: nothing cancels on either side
    const F size = V::Abs(gate);
    const F tail = V::Mul(V::Mul(V::Set1(0.5f), size), Erfc<V>(V::Mul(size, V::Set1(0.70710678f))));
    return V::Mul(V::Sub(V::Max(V::Set1(0.0f), gate), tail), up);
  } else if constexpr (kActivation == Activation::kGeluTanh) {
    // (1 + tanh u) / 2 = sigmoid(2u), u = sqrt(2 / pi) (x + 0.044715 x^3)
    const F inner = V::Fma(V::Mul(V::Set1(0.044715f), V::Mul(gate, gate)), gate, gate);
    return V::Mul(V::Mul(gate, Sigmoid<V>(V::Mul(V::Set1(1.59576912f), inner))), up);
  } else if constexpr (kActivation == Activation::kRelu) {
    return V::Mul(V::Max(V::Set1(0.0f), gate), up);
  } else if constexpr (kActivation == Activation::kRelu2) {
    const F positive = V::Max(V::Set1(0.0f), gate);
    return V::Mul(V::Mul(positive, positive), up);
  } else {
    const F limit = V::Set1(args.limit);
    gate = V::Min(limit, gate);
    up = V::Max(V::Set1(-args.limit), V::Min(limit, up));
    const F sigmoid = Sigmoid<V>(V::Mul(V::Set1(args.alpha), gate));
    return V::Mul(V::Mul(V::Add(up, V::Set1(1.0f)), gate), sigmoid);
  }
}

template <class V, Activation kActivation>
void ActivatePanel(const ActivateArgs& args) {
  for (std::int64_t m = 0; m < args.m; ++m) {
    const float* c = args.c + m * kPanelOuts;
    std::byte* h = args.h + m * args.h_pitch;
    for (int f = 0; f < kPanelOuts / 2; f += V::kLanes) {
      const float* gate = c + f / kUnitOuts * 2 * kUnitOuts + f % kUnitOuts;
      const typename V::F value = Gated<V, kActivation>(V::Load(gate), V::Load(gate + kUnitOuts), args);
      if (args.h_bf16) {
        V::StoreBf16(reinterpret_cast<std::uint16_t*>(h) + f, value);
      } else {
        V::Store(reinterpret_cast<float*>(h) + f, value);
      }
    }
  }
}

template <class V>
void Activate(const ActivateArgs& args) {
  switch (static_cast<Activation>(args.activation)) {
    case Activation::kSilu:
      return ActivatePanel<V, Activation::kSilu>(args);
    case Activation::kGelu:
      return ActivatePanel<V, Activation::kGelu>(args);
    case Activation::kGeluTanh:
      return ActivatePanel<V, Activation::kGeluTanh>(args);
    case Activation::kRelu:
      return ActivatePanel<V, Activation::kRelu>(args);
    case Activation::kRelu2:
      return ActivatePanel<V, Activation::kRelu2>(args);
    case Activation::kSwigluOai:
      return ActivatePanel<V, Activation::kSwigluOai>(args);
  }
}

// Elements [i, i + count) of a row of bf16 or f32; those beyond are zero, and not read.
template <class V>
typename V::F LoadElements(const void* row, bool bf16, std::int64_t i, std::int64_t count) {
  if (count >= V::kLanes) {
    return bf16 ? V::LoadBf16(static_cast<const std::uint16_t*>(row) + i) : V::Load(static_cast<const float*>(row) + i);
  }
  alignas(64) float some[V::kLanes] = {};
  const std::int64_t size = bf16 ? 2 : 4;
  __builtin_memcpy(some, static_cast<const std::byte*>(row) + i * size, static_cast<std::size_t>(count * size));
  return bf16 ? V::LoadBf16(reinterpret_cast<const std::uint16_t*>(some)) : V::Load(some);
}

template <class V>
void StoreElements(void* row, bool bf16, std::int64_t i, std::int64_t count, typename V::F value) {
  if (count >= V::kLanes) {
    return bf16 ? V::StoreBf16(static_cast<std::uint16_t*>(row) + i, value)
                : V::Store(static_cast<float*>(row) + i, value);
  }
  alignas(64) float some[V::kLanes];
  bf16 ? V::StoreBf16(reinterpret_cast<std::uint16_t*>(some), value) : V::Store(some, value);
  const std::int64_t size = bf16 ? 2 : 4;
  __builtin_memcpy(static_cast<std::byte*>(row) + i * size, some, static_cast<std::size_t>(count * size));
}

template <class V>
void Combine(const CombineArgs& args) {
  for (std::int64_t i = 0; i < args.d; i += V::kLanes) {
    typename V::F sum = V::Set1(0.0f);
    for (std::int64_t t = 0; t < args.count; ++t) {
      sum = V::Fma(V::Set1(args.weights[t]), LoadElements<V>(args.terms[t], false, i, args.d - i), sum);
    }
    StoreElements<V>(args.out, args.out_bf16, i, args.d - i, sum);
  }
}

template <class V>
void Convert(const ConvertArgs& args) {
  const typename V::F scale = V::Set1(args.scale);
  for (std::int64_t i = 0; i < args.n; i += V::kLanes) {
    const typename V::F value = V::Mul(scale, LoadElements<V>(args.in, args.in_bf16, i, args.n - i));
    StoreElements<V>(args.out, args.out_bf16, i, args.n - i, value);
  }
}

}  // namespace
}  // namespace expertd::cpu
