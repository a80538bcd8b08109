// What is compiled once for each instruction set: the inner loops, behind one table of functions.
//
// Plain structs only. The files that fill a table are compiled for a processor that may not be there, so they must not
// instantiate anything (a standard library template, an inline function) that the linker could share with other files.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/panel_layout.h"

namespace expertd::cpu {

// C[m, 64] += rows[m, k] * panel^T, in the order of k that panel_layout.h states.
struct PanelArgs {
  const std::byte* panel = nullptr;  // packed, 64-byte aligned
  std::int64_t k = 0;                // a multiple of 32
  const std::byte* rows = nullptr;   // m rows of k bf16 or f32, zero beyond the matrix's own k
  std::int64_t row_pitch = 0;        // bytes
  std::int64_t m = 0;
  float* c = nullptr;
  std::int64_t c_pitch = 0;  // elements
};

// h[m, 32] = act(gate) * up, of panels packed by GateUpPanel.
struct ActivateArgs {
  const float* c = nullptr;  // [m, 64]
  std::int64_t m = 0;
  int activation = 0;  // static_cast<int>(Activation)
  float limit = 0.0f, alpha = 0.0f;
  std::byte* h = nullptr;
  std::int64_t h_pitch = 0;  // bytes
  bool h_bf16 = false;
};

// out[d] = sum over t of weights[t] * terms[t][d], in that order, rounded once.
struct CombineArgs {
  const float* const* terms = nullptr;
  const float* weights = nullptr;
  std::int64_t count = 0;
  std::int64_t d = 0;
  void* out = nullptr;
  bool out_bf16 = false;
};

// out[i] = scale * in[i].
struct ConvertArgs {
  const void* in = nullptr;
  void* out = nullptr;
  bool in_bf16 = false, out_bf16 = false;
  float scale = 1.0f;
  std::int64_t n = 0;
};

using PanelFunction = void (*)(const PanelArgs&);

struct IsaKernels {
  PanelFunction f32_rows[kPackedFormats];   // by PackedFormat
  PanelFunction bf16_rows[kPackedFormats];  // null where bf16 rows are computed as f32 rows
  void (*activate)(const ActivateArgs&);
  void (*combine)(const CombineArgs&);
  void (*convert)(const ConvertArgs&);
};

extern const IsaKernels kAvx2Kernels;
extern const IsaKernels kAvx512Kernels;
extern const IsaKernels kAvx512Bf16Kernels;
extern const IsaKernels kAmxKernels;

}  // namespace expertd::cpu
