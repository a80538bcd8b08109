// A layer packed for the CPU kernels.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/cpu/huge_buffer.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/packed_matrix.h"
#include "kernels/engine.h"

namespace expertd::cpu {

// down(act(gate(x), up(x))).
struct PackedExpert {
  PackedMatrix gate_up;  // by GateUpPanel
  PackedMatrix down;     // by PlainPanel
};

class CpuLayer final : public Layer {
 public:
  // Packs with `threads` threads, expert after expert, releasing each: beside the packed weights, at most one expert of
  // the source is in memory (of few, large experts a part). `owner` is whose layer it is.
  static absl::StatusOr<std::shared_ptr<const CpuLayer>> Load(const LayerSource& source, Isa isa, int threads,
                                                              const void* owner);

  const LayerSpec& spec() const override { return spec_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::int64_t weight_bytes() const override { return static_cast<std::int64_t>(weights_.size()); }
  absl::string_view path() const override { return path_; }

  const void* owner() const { return owner_; }
  const PackedMatrix& router() const { return router_; }
  const float* correction_bias() const { return correction_bias_.empty() ? nullptr : correction_bias_.data(); }
  // Held experts by id - first_expert, then the shared expert where there is one.
  const std::vector<PackedExpert>& experts() const { return experts_; }
  std::int64_t shared_index() const { return spec_.shared_intermediate_size > 0 ? spec_.held_experts : -1; }
  const PackedMatrix& shared_gate() const { return shared_gate_; }  // one output
  // Whether bf16 rows are computed as they are; otherwise (no such instruction, or weights that bf16 does not hold
  // exactly) they are widened to f32.
  bool native_bf16() const { return native_bf16_; }

 private:
  friend class LayerLoader;
  explicit CpuLayer(const LayerSpec& spec) : spec_(spec) {}

  LayerSpec spec_;
  std::string fingerprint_;
  std::string path_;
  const void* owner_ = nullptr;
  HugeBuffer weights_;  // everything that the matrices point into
  PackedMatrix router_;
  PackedMatrix shared_gate_;
  std::vector<float> correction_bias_;
  std::vector<PackedExpert> experts_;
  bool native_bf16_ = false;
};

}  // namespace expertd::cpu
