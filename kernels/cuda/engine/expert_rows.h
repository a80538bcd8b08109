// What the engine does with rows and slots around the expert GEMMs, for plain callers. Each enqueues one kernel on
// `stream` (a cudaStream_t) and answers a cudaError_t.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// A chunk's tables from the host's page-locked memory, its rows from there or from the device's: to = from, and x[n] =
// the row at in_row[n], or zeros.
struct FetchRowsLaunch {
  const void* from = nullptr;  // [bytes], a multiple of 16, as are both addresses
  void* to = nullptr;
  std::int64_t bytes = 0;
  std::int64_t n = 0, row_bytes = 0;
  bool vectorised = false;               // rows and row_bytes are multiples of 16, else of 2
  const std::int64_t* in_row = nullptr;  // [n] in the host's memory: addresses, 0: none
  void* x = nullptr;                     // [n, row_bytes]
};
int LaunchFetchRows(const FetchRowsLaunch& launch, void* stream);

// at = the device's time in nanoseconds.
int LaunchStamp(std::uint64_t* at, void* stream);

// The slots of a batch whose first `routed_rows` rows were routed here, k each, and whose others came with kc: ids
// become indices of held experts, or -1. Rows from `live` on have no slots.
struct FillSlotsLaunch {
  std::int64_t n = 0, routed_rows = 0, k = 0, kc = 0;
  const std::int32_t* routed_ids = nullptr;  // [routed_rows, k]
  const float* routed_weights = nullptr;
  const std::int32_t* given_ids = nullptr;  // [n - routed_rows, kc]
  const float* given_weights = nullptr;
  const std::int32_t* live = nullptr;  // [1]
  std::int64_t first_expert = 0, held_experts = 0;
  std::int32_t* ids = nullptr;      // [n, kc]
  float* weights = nullptr;         // [n, kc]
  std::int32_t* cleared = nullptr;  // [cleared_count] set to zero, for kernels to come
  std::int64_t cleared_count = 0;
};
int LaunchFillSlots(const FillSlotsLaunch& launch, void* stream);

// out[p, f] = act(in[p, f] + bias[e, f]) * (in[p, F + f] + bias[e, F + f]) for the positions p of every expert e.
struct ExpertActivationLaunch {
  std::int64_t positions = 0, experts = 0, f = 0;
  Gate gate = Gate::kSilu;
  float limit = 0, alpha = 0;
  Element element = Element::kBF16;       // of out
  const std::int32_t* offsets = nullptr;  // [experts + 1]
  const float* in = nullptr;              // [positions, 2f]
  const float* bias = nullptr;            // [experts, 2f] or null
  void* out = nullptr;                    // [positions, f]
};
int LaunchExpertActivation(const ExpertActivationLaunch& launch, void* stream);

// A row's answer, in f32 and in this order: its slots' outputs (and biases) times their weights, then the shared
// expert's. Rounded once, to the type that its place asks for.
struct CombineRowsLaunch {
  std::int64_t n = 0, d = 0, kc = 0;
  Element element = Element::kBF16;
  const void* expert_out = nullptr;          // [positions, d]
  const std::int32_t* positions = nullptr;   // [n, kc]; -1: no such slot
  const std::int32_t* ids = nullptr;         // [n, kc]
  const float* weights = nullptr;            // [n, kc]; null: ones
  const float* down_bias = nullptr;          // [experts, d] or null
  const void* shared_out = nullptr;          // [*, d]
  const std::int32_t* shared_row = nullptr;  // [n]; -1: none; null: none for any row
  const float* shared_gate = nullptr;        // [n] logits, or null: ungated
  const std::int64_t* out_row = nullptr;     // [n] address of the row's answer, plus 1 when it is bf16; 0: none
};
int LaunchCombineRows(const CombineRowsLaunch& launch, void* stream);

}  // namespace expertd::cuda
