// Some experts over the rows of a chunk: first product, activation, second product. As one kernel where the experts are
// fused and the rows bf16, else as one kernel for each.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/engine/cuda_layer.h"
#include "kernels/cuda/expert_sort.h"
#include "kernels/cuda/host.h"
#include "kernels/layer_spec.h"

namespace expertd::cuda {

// Buffers in the workspace; those that a chain does without are null.
struct ExpertChain {
  float* gate_up = nullptr;     // [positions, 2F]  rounding starts after the activation
  std::byte* spread = nullptr;  // [slots, D]       rows of slots, where weights multiply them
  bool fused = false;
  std::int32_t* counters = nullptr;  // [ChainCounters()], zero when the chain runs
  // Rows that are quantised, those of `spread` or else of x; then hidden is [positions, Fp8RowBytes(F)].
  std::int64_t coded_rows = 0;
  std::byte* codes = nullptr;      // [coded_rows, Fp8RowBytes(D)]
  float* code_scales = nullptr;    // [lines of D, coded_rows]
  float* hidden_scales = nullptr;  // [lines of F, positions]
  std::byte* hidden = nullptr;     // [positions, F]
  std::byte* out = nullptr;        // [positions, D]
};
// 0: the chain is not fused.
std::int64_t ChainCounters(std::int64_t positions, const DeviceExperts& experts, DType dtype);
// For `positions` slots of n rows of `dtype`; `on_input`: weights multiply the rows.
ExpertChain PlaceChain(std::int64_t n, std::int64_t positions, const DeviceExperts& experts, DType dtype, bool on_input,
                       std::int32_t* counters, Scratch& scratch);

// What a chain computes. Slots are [n, k]; positions are slots sorted by expert.
struct ExpertWork {
  const LayerSpec& spec;
  const DeviceExperts& experts;
  const ExpertChain& chain;
  DType dtype = DType::kBF16;
  std::int64_t n = 0, k = 1, positions = 0;
  const std::byte* x = nullptr;                // [n, D]
  const float* on_input = nullptr;             // [n, k] weights that multiply the rows, or null
  const std::int32_t* ids = nullptr;           // [n, k] where slots were sorted by the last kernel, else null
  const std::int32_t* sorted_slots = nullptr;  // [positions]
  const std::int32_t* offsets = nullptr;       // [experts + 1]
};
// Enqueues what chain.spread needs; nothing where it is null.
absl::Status SpreadChainRows(const ExpertWork& work, Stream stream);
// Enqueues all of it; chain.out is written.
absl::Status RunChain(const ExpertWork& work, Stream stream);

}  // namespace expertd::cuda
