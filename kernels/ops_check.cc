#include "kernels/ops_check.h"

#include <initializer_list>
#include <limits>

#include "absl/strings/str_format.h"

namespace expertd {
namespace {

constexpr std::int64_t kMaxIndex = std::numeric_limits<std::int32_t>::max();

struct Size {
  absl::string_view field;
  std::int64_t value, low, high;
};
struct Pointer {
  absl::string_view field;
  const void* value;
};
struct Element {
  absl::string_view field;
  DType value;
};

absl::Status CheckSizes(std::initializer_list<Size> sizes) {
  for (const Size& s : sizes) {
    if (s.value < s.low || s.value > s.high) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: %d is outside %d..%d", s.field, s.value, s.low, s.high));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckPointers(std::initializer_list<Pointer> pointers) {
  for (const Pointer& p : pointers) {
    if (p.value == nullptr) return absl::InvalidArgumentError(absl::StrFormat("%s: is null", p.field));
  }
  return absl::OkStatus();
}

absl::Status CheckElements(std::initializer_list<Element> elements) {
  for (const Element& e : elements) {
    if (e.value != DType::kBF16 && e.value != DType::kF32) {
      return absl::InvalidArgumentError(absl::StrFormat("%s: %s is neither bf16 nor f32", e.field, DTypeName(e.value)));
    }
  }
  return absl::OkStatus();
}

// Sizes, element types, and pointers where there is work to do: the first that fails.
absl::Status CheckAll(std::initializer_list<Size> sizes, std::initializer_list<Element> elements, bool work,
                      std::initializer_list<Pointer> pointers) {
  if (absl::Status status = CheckSizes(sizes); !status.ok()) return status;
  if (absl::Status status = CheckElements(elements); !status.ok()) return status;
  return work ? CheckPointers(pointers) : absl::OkStatus();
}

Size Experts(std::int64_t e) { return {"e", e, 1, kMaxExperts}; }
Size Hidden(std::int64_t d) { return {"d", d, 1, kMaxHiddenSize}; }
Size Intermediate(std::int64_t f) { return {"f", f, 1, kMaxIntermediateSize}; }
// K and N together, so that the number of slots stays below 2^31.
Size PerRow(std::int64_t k) { return {"k", k, 1, kMaxExpertsPerToken}; }
Size RowsOf(std::int64_t n, std::int64_t k) { return {"n", n, 0, kMaxIndex / (k < 1 ? 1 : k)}; }

template <class Args>
absl::Status CheckActivation(const Args& args, std::initializer_list<Pointer> pointers) {
  return CheckAll({{"m", args.m, 0, kMaxIndex}, Intermediate(args.f)}, {{"dtype", args.dtype}}, args.m > 0, pointers);
}

template <class Args>
absl::Status CheckSlots(const Args& args, std::initializer_list<Element> elements,
                        std::initializer_list<Pointer> pointers) {
  return CheckAll({PerRow(args.k), RowsOf(args.n, args.k), Hidden(args.d), {"r", args.r, 0, kMaxIndex}}, elements,
                  args.n > 0, pointers);
}

template <class Args>
absl::Status CheckGroups(const Args& args, std::initializer_list<Element> elements, bool work,
                         std::initializer_list<Pointer> pointers) {
  return CheckAll({{"positions", args.positions, 0, kMaxIndex},
                   Experts(args.e),
                   {"in", args.in, 1, kMaxIntermediateSize},
                   {"out_features", args.out_features, 1, 2 * kMaxIntermediateSize}},
                  elements, work, pointers);
}

}  // namespace

absl::Status Check(const ActivationForwardArgs& args) {
  return CheckActivation(args, {{"in", args.in}, {"out", args.out}});
}

absl::Status Check(const ActivationBackwardArgs& args) {
  return CheckActivation(args, {{"grad_out", args.grad_out}, {"in", args.in}, {"grad_in", args.grad_in}});
}

absl::Status Check(const FusedTopkRoutingArgs& args) {
  absl::Status status =
      CheckAll({Experts(args.e), PerRow(args.k), {"k", args.k, 1, args.e}, RowsOf(args.n, args.k)}, {}, args.n > 0,
               {{"logits", args.logits}, {"weights", args.weights}, {"ids", args.ids}});
  if (!status.ok()) return status;
  if (args.n > 0 && args.rule.correction_bias && args.correction_bias == nullptr) {
    return absl::InvalidArgumentError("correction_bias: is null, but the rule has one");
  }
  // The rule fits the sizes as it must in a layer.
  LayerSpec spec;
  spec.hidden_size = spec.intermediate_size = 1;
  spec.num_experts = args.e;
  spec.experts_per_token = args.k;
  spec.routing = args.rule;
  return spec.Validate();
}

absl::Status Check(const MoeAlignBlockSizeArgs& args) {
  absl::Status status =
      CheckAll({Experts(args.e), {"slots", args.slots, 0, kMaxIndex}, {"block", args.block, 1, 65536}}, {}, true,
               {{"counts", args.counts}, {"offsets", args.offsets}});
  if (!status.ok()) return status;
  if (status = CheckSizes({{"padded slots", PaddedSlots(args.slots, args.e, args.block), 0, kMaxIndex}});
      !status.ok()) {
    return status;
  }
  if (args.slots == 0) return absl::OkStatus();
  return CheckPointers({{"ids", args.ids}, {"sorted_slots", args.sorted_slots}, {"block_experts", args.block_experts}});
}

absl::Status Check(const FusedRoutingScatterArgs& args) {
  const std::int64_t max_tokens_limit = kMaxIndex / (args.e < 1 ? 1 : args.e);
  absl::Status status = CheckAll({Experts(args.e),
                                  PerRow(args.k),
                                  RowsOf(args.n, args.k),
                                  Hidden(args.d),
                                  {"max_tokens", args.max_tokens, 0, max_tokens_limit}},
                                 {{"dtype", args.dtype}}, true, {{"counts", args.counts}, {"overflow", args.overflow}});
  if (!status.ok()) return status;
  if (args.max_tokens > 0 && args.batched == nullptr) return absl::InvalidArgumentError("batched: is null");
  if (args.n == 0) return absl::OkStatus();
  return CheckPointers({{"rows", args.rows}, {"ids", args.ids}, {"slot_pos", args.slot_pos}});
}

absl::Status Check(const FusedGatherReduceArgs& args) {
  absl::Status status = CheckSlots(args, {{"dtype", args.dtype}, {"out_dtype", args.out_dtype}},
                                   {{"slot_row", args.slot_row}, {"out", args.out}});
  if (!status.ok() || args.n == 0 || args.r == 0) return status;
  return CheckPointers({{"expert_out", args.expert_out}});
}

absl::Status Check(const FusedWeightedScatterArgs& args) {
  absl::Status status =
      CheckSlots(args, {{"dtype", args.dtype}}, {{"grad_out", args.grad_out}, {"slot_row", args.slot_row}});
  if (!status.ok() || args.r == 0) return status;
  return CheckPointers({{"grad_expert", args.grad_expert}});
}

absl::Status Check(const FusedRoutingWeightGradArgs& args) {
  absl::Status status =
      CheckSlots(args, {{"dtype", args.dtype}},
                 {{"grad_out", args.grad_out}, {"slot_row", args.slot_row}, {"grad_weights", args.grad_weights}});
  if (!status.ok() || args.n == 0 || args.r == 0) return status;
  return CheckPointers({{"expert_out", args.expert_out}});
}

absl::Status Check(const FusedDispatchPackArgs& args) {
  absl::Status status = CheckAll(
      {Experts(args.e), PerRow(args.k), RowsOf(args.n, args.k), Hidden(args.d), {"shards", args.shards, 1, args.e}}, {},
      true, {{"counts", args.counts}});
  if (!status.ok() || args.n == 0) return status;
  return CheckPointers({{"rows", args.rows}, {"ids", args.ids}, {"packed", args.packed}, {"source", args.source}});
}

absl::Status Check(const MoeGroupedGemmArgs& args) {
  return CheckGroups(args, {{"dtype", args.dtype}}, args.positions > 0,
                     {{"x", args.x}, {"offsets", args.offsets}, {"w", args.w}, {"out", args.out}});
}

absl::Status Check(const FusedMoeForwardArgs& args) {
  return CheckAll({Experts(args.e), PerRow(args.k), RowsOf(args.n, args.k), Hidden(args.d), Intermediate(args.f)},
                  {{"dtype", args.dtype}, {"out_dtype", args.out_dtype}}, args.n > 0,
                  {{"rows", args.rows},
                   {"ids", args.ids},
                   {"weights", args.weights},
                   {"gate_up", args.gate_up},
                   {"down", args.down},
                   {"out", args.out}});
}

absl::Status Check(const MoeWeightGradArgs& args) {
  absl::Status status = CheckGroups(args, {{"dtype", args.dtype}, {"w_dtype", args.w_dtype}}, true,
                                    {{"offsets", args.offsets}, {"grad_w", args.grad_w}});
  if (!status.ok() || args.positions == 0) return status;
  return CheckPointers({{"grad_out", args.grad_out}, {"x", args.x}});
}

absl::Status CheckIndices(absl::string_view field, absl::Span<const std::int32_t> indices, std::int64_t limit) {
  for (std::size_t i = 0; i < indices.size(); ++i) {
    if (indices[i] < -1 || indices[i] >= limit) {
      return absl::InvalidArgumentError(
          absl::StrFormat("%s[%d]: %d is outside -1..%d", field, i, indices[i], limit - 1));
    }
  }
  return absl::OkStatus();
}

absl::Status CheckOffsets(absl::Span<const std::int32_t> offsets, std::int64_t positions) {
  for (std::size_t i = 0; i < offsets.size(); ++i) {
    const std::int32_t low = i == 0 ? 0 : offsets[i - 1];
    const std::int64_t high = i == 0 ? 0 : positions;
    if (offsets[i] < low || offsets[i] > high) {
      return absl::InvalidArgumentError(absl::StrFormat("offsets[%d]: %d is outside %d..%d", i, offsets[i], low, high));
    }
  }
  return absl::OkStatus();
}

}  // namespace expertd
