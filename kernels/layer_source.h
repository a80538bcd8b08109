// Where an engine gets a layer's weights from, one expert at a time, so that a layer never stands in memory twice.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/layer_spec.h"
#include "kernels/tensor.h"

namespace expertd {

// gate and up are [F, D], down is [D, F]; biases are empty unless the spec has them. All views point into the source.
struct ExpertWeights {
  WeightView gate, up, down;
  VectorView gate_bias, up_bias, down_bias;
};

struct RouterWeights {
  WeightView weight;           // [E, D]
  VectorView bias;             // [E] or empty
  VectorView correction_bias;  // [E] or empty
};

class LayerSource {
 public:
  virtual ~LayerSource() = default;

  virtual const LayerSpec& spec() const = 0;

  virtual RouterWeights router() const = 0;
  // `expert` is one of the ids that the spec says are held. Views stay valid until Release(expert). Thread-safe for
  // distinct experts.
  virtual ExpertWeights expert(std::int64_t expert) const = 0;
  // Only when spec().shared_intermediate_size > 0.
  virtual ExpertWeights shared() const = 0;
  // [D]; only when spec().shared_gated.
  virtual VectorView shared_gate() const = 0;

  // The engine has taken over this expert's weights: the source may drop its pages. Reading them again is allowed and
  // slow.
  virtual void Release(std::int64_t expert) const = 0;

  // Hex digest of the spec's Canonical() and every weight's bytes. May read all of the weights.
  virtual absl::StatusOr<std::string> Fingerprint() const = 0;
};

}  // namespace expertd
