// Weights packed for the kernels: where a matrix's panels are, and how they are filled from a checkpoint's views.
#pragma once

#include <cstddef>
#include <cstdint>

#include "absl/status/statusor.h"
#include "kernels/cpu/panel_layout.h"
#include "kernels/tensor.h"

namespace expertd::cpu {

constexpr std::int64_t RoundUp(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}
constexpr std::int64_t PaddedK(std::int64_t k) { return RoundUp(k, kKQuantum); }

// InvalidArgument naming `what` for a dtype that is no weight's.
absl::StatusOr<PackedFormat> PackedFormatOf(DType dtype, const char* what);

// Does not own its memory.
struct PackedMatrix {
  PackedFormat format = PackedFormat::kBF16;
  std::int64_t panels = 0;
  std::int64_t k = 0;
  std::byte* data = nullptr;    // [panels][panel_bytes()], 64-byte aligned
  const float* bias = nullptr;  // [panels][64], or null

  std::int64_t panel_bytes() const;
  std::int64_t bytes() const { return panels * panel_bytes(); }
  std::byte* panel(std::int64_t p) const { return data + p * panel_bytes(); }
};

// Where the 16 outputs of one unit of a panel come from: rows [first, first + 16) of the view, zero beyond its end.
struct UnitSource {
  const WeightView* weights = nullptr;
  const VectorView* bias = nullptr;
  std::int64_t first = 0;
};
struct PanelSource {
  UnitSource units[kPanelUnits];
};

// Panel p of a plain matrix: outputs 64 p to 64 p + 63.
PanelSource PlainPanel(const WeightView& weights, const VectorView& bias, std::int64_t p);
// Panel p of gate and up: 32 outputs of each, unit by unit, so that an activation finds both in one panel's result.
PanelSource GateUpPanel(const WeightView& gate, const VectorView& gate_bias, const WeightView& up,
                        const VectorView& up_bias, std::int64_t p);

// Fills panel p of `matrix`, whose memory is zero.
void PackPanel(const PanelSource& source, const PackedMatrix& matrix, std::int64_t p);
// The panel's 64 biases; zero where a bias is empty.
void PackBias(const PanelSource& source, float* bias);

}  // namespace expertd::cpu
