// The public catalogue: twelve operations of a Mixture-of-Experts layer, forward and backward, after the FlashFuseMoE
// kernel set.
//
// One contract each, the same on every device. `expertd::reference` (kernels/reference/ops.h) implements all of them in
// double and is the oracle; engines implement those that they use, with the same argument types.
//
// Letters: N rows, D hidden size, E experts, K experts per row, F intermediate size, slot s = n * K + k, S = N * K
// slots. All arrays are dense and row-major unless a layout is named, and do not overlap. Pointers are the caller's; on
// CUDA they are device pointers. Floating elements are bf16 or f32 as the dtype fields say; arithmetic is f32 at least
// and rounds once. An expert id of -1 means "not held here": the slot is skipped by every op, and nothing is read or
// written for it. Limits: E <= 4096, K <= 64, D <= 65536, F <= 262144, S < 2^31; InvalidArgument beyond, naming the
// field (kernels/ops_check.h). N = 0 writes only what does not depend on rows: zero counts and offsets.
#pragma once

#include <cstdint>

#include "kernels/layer_spec.h"
#include "kernels/tensor.h"

namespace expertd {

// Gated activations of the catalogue over Activation: silu = swiglu, gelu = geglu, relu2 = relu2glu. swiglu_oai is the
// clamped one.
//   gate, up = halves of in[m, :]        (interleaved: gate = even elements, up = odd ones)
//   out[m, f] = act(gate[f]) * up[f]
//   in   [M, 2F]  dtype
//   out  [M, F]   dtype
struct ActivationForwardArgs {
  std::int64_t m = 0, f = 0;
  Activation activation = Activation::kSilu;
  float limit = 7.0f, alpha = 1.702f;  // kSwigluOai
  bool interleaved = false;
  DType dtype = DType::kBF16;
  const void* in = nullptr;
  void* out = nullptr;
};

// Gradient of ActivationForward in one pass; both halves are written in place, there is no concatenation.
//   grad_out [M, F]   dtype
//   in       [M, 2F]  dtype   what the forward op saw
//   grad_in  [M, 2F]  dtype   may be `in` itself
struct ActivationBackwardArgs {
  std::int64_t m = 0, f = 0;
  Activation activation = Activation::kSilu;
  float limit = 7.0f, alpha = 1.702f;
  bool interleaved = false;
  DType dtype = DType::kBF16;
  const void* grad_out = nullptr;
  const void* in = nullptr;
  void* grad_in = nullptr;
};

// Score, choose, weigh (layer_spec.h); best choice first, ties to the lower id. A row with NaN logits gets ids 0..K-1
// in some order that depends on that row only, and NaN weights.
//   logits           [N, E] f32   router bias already added
//   correction_bias  [E]    f32   or null
//   weights          [N, K] f32
//   ids              [N, K] i32
struct FusedTopkRoutingArgs {
  std::int64_t n = 0, e = 0, k = 0;
  RoutingRule rule;
  const float* logits = nullptr;
  const float* correction_bias = nullptr;
  float* weights = nullptr;
  std::int32_t* ids = nullptr;
};

// Slots sorted by expert, stable in s, each expert's run padded to a multiple of `block`.
//   ids             [S] i32       in [-1, E)
//   counts          [E] i32       slots of each expert
//   offsets         [E + 1] i32   where each expert's padded run starts; offsets[E] is the padded total
//   sorted_slots    [P] i32       slot at each padded position, or -1 for padding; P = PaddedSlots(S, E, block)
//   block_experts   [P / block] i32  expert of each block, or -1 past the total
struct MoeAlignBlockSizeArgs {
  std::int64_t slots = 0, e = 0, block = 1;
  const std::int32_t* ids = nullptr;
  std::int32_t* counts = nullptr;
  std::int32_t* offsets = nullptr;
  std::int32_t* sorted_slots = nullptr;
  std::int32_t* block_experts = nullptr;
};

// Upper bound of the padded positions: every non-empty expert can waste block - 1 of them. A multiple of block.
constexpr std::int64_t PaddedSlots(std::int64_t slots, std::int64_t e, std::int64_t block) {
  const std::int64_t hit = slots < e ? slots : e;
  return (slots + hit * (block - 1) + block - 1) / block * block;
}

// Rows into the batched layout: slot s of expert e goes to batched[e, p, :], p counting e's slots in the order of s.
//   rows       [N, D] dtype
//   ids        [N, K] i32
//   batched    [E, max_tokens, D] dtype   positions that no slot names are set to zero
//   slot_pos   [N * K] i32   e * max_tokens + p; -1 for skipped slots and for slots over capacity
//   counts     [E] i32       slots of each expert, also those over capacity
//   overflow   [1] i32       slots over capacity: never silently dropped
struct FusedRoutingScatterArgs {
  std::int64_t n = 0, d = 0, e = 0, k = 0, max_tokens = 0;
  DType dtype = DType::kBF16;
  const void* rows = nullptr;
  const std::int32_t* ids = nullptr;
  void* batched = nullptr;
  std::int32_t* slot_pos = nullptr;
  std::int32_t* counts = nullptr;
  std::int32_t* overflow = nullptr;
};

// Sums each row's expert outputs, weighted, in f32 and in the order of k, and rounds once:
//   out[n, :] = sum_k weights[n, k] * expert_out[slot_row[n * K + k], :]
//   expert_out  [R, D]    dtype        rows that no slot names are never read
//   slot_row    [N * K]   i32          in [0, R), or -1: the slot counts as zero
//   weights     [N, K]    f32          or null for a plain sum
//   out         [N, D]    out_dtype    written in full
struct FusedGatherReduceArgs {
  std::int64_t n = 0, d = 0, k = 0, r = 0;
  DType dtype = DType::kBF16, out_dtype = DType::kBF16;
  const void* expert_out = nullptr;
  const std::int32_t* slot_row = nullptr;
  const float* weights = nullptr;
  void* out = nullptr;
};

// Backward of FusedGatherReduce with respect to expert_out: grad_expert[slot_row[s], :] = weights[s] * grad_out[n, :].
//   grad_out     [N, D] dtype
//   slot_row     [N * K] i32   distinct, or -1
//   weights      [N, K] f32    or null for ones
//   grad_expert  [R, D] dtype  rows that no slot names are set to zero
struct FusedWeightedScatterArgs {
  std::int64_t n = 0, d = 0, k = 0, r = 0;
  DType dtype = DType::kBF16;
  const void* grad_out = nullptr;
  const std::int32_t* slot_row = nullptr;
  const float* weights = nullptr;
  void* grad_expert = nullptr;
};

// Backward of FusedGatherReduce with respect to weights: grad_weights[n, k] = dot(expert_out[slot_row[s], :],
// grad_out[n, :]).
//   expert_out    [R, D] dtype
//   grad_out      [N, D] dtype
//   slot_row      [N * K] i32   or -1: gradient 0
//   grad_weights  [N, K] f32
struct FusedRoutingWeightGradArgs {
  std::int64_t n = 0, d = 0, k = 0, r = 0;
  DType dtype = DType::kBF16;
  const void* expert_out = nullptr;
  const void* grad_out = nullptr;
  const std::int32_t* slot_row = nullptr;
  float* grad_weights = nullptr;
};

// Rows packed for an all-to-all: slots ordered by destination shard, stable in s. Experts are dealt to shards in equal
// contiguous runs of ceil(E / shards). The original's [M, D + 1] with the id as an element is [M, D + 8] here: rows
// stay 16-byte aligned, and the id is bit-cast to i32 in the first two bf16 of the tail (the other six are zero),
// because bf16 holds integers exactly only to 256.
//   rows    [N, D] bf16
//   ids     [N, K] i32
//   packed  [S, D + 8] bf16   rows past the last held slot are untouched
//   source  [S] i32           slot of each packed row, -1 past the last
//   counts  [shards] i32      rows for each shard
struct FusedDispatchPackArgs {
  std::int64_t n = 0, d = 0, e = 0, k = 0, shards = 1;
  const void* rows = nullptr;
  const std::int32_t* ids = nullptr;
  void* packed = nullptr;
  std::int32_t* source = nullptr;
  std::int32_t* counts = nullptr;
};

// Per-expert products over ragged groups: out[r, :] = x[row(r), :] . w[e(r)]^T for the positions r of expert e.
//   x        [*, in] dtype      gathered by `gather`, or position r itself when gather is null
//   gather   [P] i32            x row of each position, or -1: the position is padding, nothing is written
//   offsets  [E + 1] i32        from 0; positions of expert e are [offsets[e], offsets[e + 1]); read where the op runs
//   w        [E, out, in] dtype
//   out      [P, out] dtype     f32 accumulation along `in` in one fixed order per shape
struct MoeGroupedGemmArgs {
  std::int64_t positions = 0, e = 0, in = 0, out_features = 0;
  DType dtype = DType::kBF16;
  const void* x = nullptr;
  const std::int32_t* gather = nullptr;
  const std::int32_t* offsets = nullptr;
  const void* w = nullptr;
  void* out = nullptr;
};

// The whole expert part of a layer for given routing, weights as in MoeGroupedGemm:
//   out[n, :] = sum_k weights[n, k] * down[e] . act(gate_up[e] . rows[n, :])        with e = ids[n, k]
//   rows     [N, D] dtype
//   ids      [N, K] i32
//   weights  [N, K] f32
//   gate_up  [E, 2F, D] dtype   gate rows first
//   down     [E, D, F] dtype
//   out      [N, D] out_dtype
// The activation is rounded to dtype between the products. weight_on_input multiplies rows by the weight (rounded to
// dtype) instead of the output.
struct FusedMoeForwardArgs {
  std::int64_t n = 0, d = 0, e = 0, k = 0, f = 0;
  Activation activation = Activation::kSilu;
  float limit = 7.0f, alpha = 1.702f;
  bool weight_on_input = false;
  DType dtype = DType::kBF16, out_dtype = DType::kBF16;
  const void* rows = nullptr;
  const std::int32_t* ids = nullptr;
  const float* weights = nullptr;
  const void* gate_up = nullptr;
  const void* down = nullptr;
  void* out = nullptr;
};

// Gradient of an expert's weights over ragged groups: grad_w[e] = sum over e's positions r of grad_out[r, :]^T . x[r,
// :].
//   grad_out  [P, out] dtype
//   x         [P, in] dtype
//   offsets   [E + 1] i32           as in MoeGroupedGemm
//   grad_w    [E, out, in] w_dtype  f32, or bf16 rounded once; experts without positions get zeros
struct MoeWeightGradArgs {
  std::int64_t positions = 0, e = 0, in = 0, out_features = 0;
  DType dtype = DType::kBF16, w_dtype = DType::kF32;
  const void* grad_out = nullptr;
  const void* x = nullptr;
  const std::int32_t* offsets = nullptr;
  void* grad_w = nullptr;
};

}  // namespace expertd
