// activation_forward and activation_backward.
#include <algorithm>
#include <cmath>
#include <numbers>

#include "kernels/ops_check.h"
#include "kernels/reference/loops.h"
#include "kernels/reference/ops.h"

namespace expertd::reference {
namespace {

struct Gate {
  double value, slope;
};

// The function of the gate alone, and its slope; kSwigluOai on a gate that is clamped already.
Gate EvaluateGate(const GatedActivation& activation, double x) {
  switch (activation.function) {
    case Activation::kSilu: {
      const double s = Sigmoid(x);
      return {x * s, s * (1.0 + x * (1.0 - s))};
    }
    case Activation::kGelu: {
      const double cdf = 0.5 * std::erfc(-x / std::numbers::sqrt2);
      const double density = std::exp(-0.5 * x * x) * 0.5 * std::numbers::inv_sqrtpi * std::numbers::sqrt2;
      return {x * cdf, cdf + x * density};
    }
    case Activation::kGeluTanh: {
      const double c = std::numbers::sqrt2 * std::numbers::inv_sqrtpi;  // sqrt(2 / pi)
      const double t = std::tanh(c * (x + 0.044715 * x * x * x));
      return {0.5 * x * (1.0 + t), 0.5 * (1.0 + t) + 0.5 * x * (1.0 - t * t) * c * (1.0 + 3.0 * 0.044715 * x * x)};
    }
    case Activation::kRelu:
      return x > 0 ? Gate{x, 1.0} : Gate{std::isnan(x) ? x : 0.0, 0.0};
    case Activation::kRelu2:
      return x > 0 ? Gate{x * x, 2.0 * x} : Gate{std::isnan(x) ? x : 0.0, 0.0};
    case Activation::kSwigluOai: {
      const double s = Sigmoid(activation.alpha * x);
      return {x * s, s * (1.0 + activation.alpha * x * (1.0 - s))};
    }
  }
  return {std::nan(""), std::nan("")};
}

// Where gate and up of feature j of row i stand in [M, 2F].
struct Halves {
  std::int64_t f;
  bool interleaved;
  std::int64_t Gate(std::int64_t i, std::int64_t j) const { return i * 2 * f + (interleaved ? 2 * j : j); }
  std::int64_t Up(std::int64_t i, std::int64_t j) const { return Gate(i, j) + (interleaved ? 1 : f); }
};

template <class Args>
GatedActivation FunctionOf(const Args& args) {
  return {args.activation, args.limit, args.alpha};
}

}  // namespace

double Sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double GatedActivation::operator()(double gate, double up) const {
  if (function == Activation::kSwigluOai) {
    // Written so that NaN passes through.
    gate = gate > limit ? limit : gate;
    up = (up > limit ? limit : up < -limit ? -limit : up) + 1.0;
  }
  return EvaluateGate(*this, gate).value * up;
}

GatedActivation::Partials GatedActivation::Derivative(double gate, double up) const {
  const bool clamped = function == Activation::kSwigluOai;
  const bool gate_inside = !clamped || !(gate > limit);
  const bool up_inside = !clamped || !(std::fabs(up) > limit);
  const Gate g = EvaluateGate(*this, gate_inside ? gate : limit);
  const double factor = clamped ? (up_inside ? up : std::copysign(limit, up)) + 1.0 : up;
  return {gate_inside ? g.slope * factor : 0.0, up_inside ? g.value : 0.0};
}

void ActivationForward(const GatedActivation& activation, std::int64_t m, std::int64_t f, bool interleaved, In in,
                       Out out) {
  const Halves at{f, interleaved};
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < f; ++j) out.Set(i * f + j, activation(in[at.Gate(i, j)], in[at.Up(i, j)]));
  }
}

void ActivationBackward(const GatedActivation& activation, std::int64_t m, std::int64_t f, bool interleaved,
                        In grad_out, In in, Out grad_in) {
  const Halves at{f, interleaved};
  for (std::int64_t i = 0; i < m; ++i) {
    for (std::int64_t j = 0; j < f; ++j) {
      // Both inputs of this feature are read before either is overwritten: grad_in may be `in`.
      const GatedActivation::Partials d = activation.Derivative(in[at.Gate(i, j)], in[at.Up(i, j)]);
      grad_in.Set(at.Gate(i, j), grad_out[i * f + j] * d.gate);
      grad_in.Set(at.Up(i, j), grad_out[i * f + j] * d.up);
    }
  }
}

absl::Status ActivationForward(const ActivationForwardArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  ActivationForward(FunctionOf(args), args.m, args.f, args.interleaved, {args.in, args.dtype}, {args.out, args.dtype});
  return absl::OkStatus();
}

absl::Status ActivationBackward(const ActivationBackwardArgs& args) {
  if (absl::Status status = Check(args); !status.ok()) return status;
  ActivationBackward(FunctionOf(args), args.m, args.f, args.interleaved, {args.grad_out, args.dtype},
                     {args.in, args.dtype}, {args.grad_in, args.dtype});
  return absl::OkStatus();
}

}  // namespace expertd::reference
