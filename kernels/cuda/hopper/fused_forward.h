// The fused forward on Hopper (sm_90a): a layer's experts for given routing, as three or four kernels without a host
// step between them.
//
//   out[n, :] = addend[n, :] + sum_k weights[n, k] * (down[e] . act(gate_up[e] . rows[n, :] + bias) + bias)
//   e = ids[n, k] - first_expert; slots whose e is not in [0, E) are skipped
//
// Sums are f32 in one order that depends on D and F alone; the activation and each slot's output are rounded to bf16;
// slots are added in f32 in the order of k, then `addend`, and rounded once. So a row's bits depend on the row, its
// routing and the weights only: not on N, nor on its neighbours.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/layer_spec.h"
#include "kernels/tensor.h"

namespace expertd::cuda::hopper {

// Sizes of a layer; E counts the experts that are held.
struct FusedShape {
  std::int64_t d = 0, e = 0, f = 0;
};

// Compute capability of a device, e.g. {9, 0}.
struct Capability {
  int major = 0, minor = 0;
};
absl::Status CurrentCapability(Capability* capability);

// Whether this path runs the shape on such a device. Pure; the message names field, value and limit: D and F multiples
// of 64 and at least 128, E in [1, 512], compute capability 9.0 exactly.
absl::Status Supported(const FusedShape& shape, Capability capability);

// Bytes of one expert's packed weights; multiples of 1024. Expert i of a layer lies at i times this from the start.
std::int64_t PackedGateUpBytes(const FusedShape& shape);
std::int64_t PackedDownBytes(const FusedShape& shape);

// Rewrites published weights in the layout the kernels read: blocks of 128 rows x 64 columns, block by block along K,
// each as it will lie in shared memory (128-byte swizzle), rows padded to 128 with zeros; gate and up rows alternate by
// 8. Any number of experts in one call, so that a loader can upload and pack expert by expert.
struct PackArgs {
  FusedShape shape;
  std::int64_t experts = 0;  // in this call
  const void* gate_up =
      nullptr;                 // [experts, 2F, D] bf16, gate rows first; device or mapped host memory, 16-byte aligned
  const void* down = nullptr;  // [experts, D, F] bf16, likewise
  void* packed_gate_up = nullptr;  // experts * PackedGateUpBytes, device, 1024-byte aligned, written in full
  void* packed_down = nullptr;     // experts * PackedDownBytes, likewise
};
// Either pair may be null. Enqueues one kernel for each pair.
absl::Status PackExperts(const PackArgs& args, Stream stream);

struct FusedForwardArgs {
  FusedShape shape;
  std::int64_t n = 0, k = 0;
  Activation activation = Activation::kSilu;
  float limit = 7.0f, alpha = 1.702f;
  bool weight_on_input =
      false;  // rows times weight, rounded to bf16, enter the first product; outputs are not weighted

  // bf16 rows of D elements on the device, 16-byte aligned: either rows + pitch or an address for each row. The array
  // of addresses lies on the device too and is read when the kernels run. Rows without a held slot are not read.
  const void* rows = nullptr;
  std::int64_t row_pitch = 0;                  // bytes; 0 means 2 D
  const void* const* row_addresses = nullptr;  // [N], instead of rows

  const std::int32_t* ids = nullptr;  // [N, K] device; -1: unused. A replayed graph runs fewer rows with -1 in the rest
  const float* weights = nullptr;     // [N, K] device; null: ones
  std::int64_t first_expert = 0;

  const void* gate_up = nullptr;        // packed
  const void* down = nullptr;           // packed
  const float* gate_up_bias = nullptr;  // [E, 2F] f32, gate first; or null
  const float* down_bias = nullptr;     // [E, D] f32; or null

  const float* addend = nullptr;  // [N, D] f32 or null: added last (a shared expert's output)

  // [N, D] out_dtype, 16-byte aligned, written in full; either out + pitch or an address for each row on the device,
  // where a null address means that the row is not wanted.
  DType out_dtype = DType::kBF16;  // or kF32
  void* out = nullptr;
  std::int64_t out_pitch = 0;            // bytes; 0 means D elements
  void* const* out_addresses = nullptr;  // [N], instead of out
};

// Scratch memory; depends on shape, n, k and weight_on_input, and grows with n and k.
std::int64_t WorkspaceBytes(const FusedForwardArgs& args);

// Enqueues on `stream`; neither allocates nor waits, so it can be captured in a graph. N = 0 does nothing.
// FailedPrecondition when the current device cannot run it; InvalidArgument naming field, value and limit.
absl::Status FusedForward(const FusedForwardArgs& args, Workspace workspace, Stream stream);

}  // namespace expertd::cuda::hopper
