// The twelve operations behind the C ABI: each struct is read into that of kernels/ops.h, and runs on the host (the
// reference) or on a device (kernels/cuda).
#include "kernels/ops.h"

#include <string>

#include "absl/strings/str_cat.h"
#include "kernels/c/expertd_ops.h"
#include "kernels/c/read_args.h"
#include "kernels/c/status.h"
#include "kernels/reference/ops.h"
#ifdef EXPERTD_WITH_CUDA
#include "kernels/c/device_scope.h"
#include "kernels/cuda/ops.h"
#endif

namespace expertd::c {
namespace {

static_assert(static_cast<int>(Activation::kSwigluOai) == EXPERTD_SWIGLU_OAI &&
              static_cast<int>(Score::kRaw) == EXPERTD_RAW &&
              static_cast<int>(GroupScore::kTop2Sum) == EXPERTD_GROUPS_TOP2_SUM &&
              static_cast<int>(Weigh::kSparseMixer) == EXPERTD_WEIGH_SPARSE_MIXER &&
              static_cast<int>(Renormalise::kMaxSumEps) == EXPERTD_RENORMALISE_MAX_SUM_EPS);

RoutingRule ReadRule(const expertd_routing_rule& from, bool correction_bias, Reader& reader) {
  return {.score = reader.Of("rule.score", from.score, Score::kRaw),
          .correction_bias = correction_bias,
          .group_score = reader.Of("rule.group_score", from.group_score, GroupScore::kTop2Sum),
          .n_group = from.n_group == 0 ? 1 : from.n_group,
          .topk_group = from.topk_group == 0 ? 1 : from.topk_group,
          .weigh = reader.Of("rule.weigh", from.weigh, Weigh::kSparseMixer),
          .renormalise = reader.Of("rule.renormalise", from.renormalise, Renormalise::kMaxSumEps),
          .renormalise_eps = from.renormalise_eps,
          .scale = from.scale == 0 ? 1.0f : from.scale,
          .jitter_eps = from.jitter_eps};
}

ActivationForwardArgs Read(const expertd_activation_forward_args& from, Reader& reader) {
  ActivationForwardArgs args = {.m = from.m,
                                .f = from.f,
                                .interleaved = from.interleaved != 0,
                                .dtype = reader.Rows("dtype", from.dtype),
                                .in = from.in,
                                .out = from.out};
  ReadActivation(from, reader, args);
  return args;
}

ActivationBackwardArgs Read(const expertd_activation_backward_args& from, Reader& reader) {
  ActivationBackwardArgs args = {.m = from.m,
                                 .f = from.f,
                                 .interleaved = from.interleaved != 0,
                                 .dtype = reader.Rows("dtype", from.dtype),
                                 .grad_out = from.grad_out,
                                 .in = from.in,
                                 .grad_in = from.grad_in};
  ReadActivation(from, reader, args);
  return args;
}

FusedTopkRoutingArgs Read(const expertd_fused_topk_routing_args& from, Reader& reader) {
  return {.n = from.n,
          .e = from.e,
          .k = from.k,
          .rule = ReadRule(from.rule, from.correction_bias != nullptr, reader),
          .logits = from.logits,
          .correction_bias = from.correction_bias,
          .weights = from.weights,
          .ids = from.ids};
}

MoeAlignBlockSizeArgs Read(const expertd_moe_align_block_size_args& from, Reader&) {
  return {.slots = from.slots,
          .e = from.e,
          .block = from.block,
          .ids = from.ids,
          .counts = from.counts,
          .offsets = from.offsets,
          .sorted_slots = from.sorted_slots,
          .block_experts = from.block_experts};
}

FusedRoutingScatterArgs Read(const expertd_fused_routing_scatter_args& from, Reader& reader) {
  return {.n = from.n,
          .d = from.d,
          .e = from.e,
          .k = from.k,
          .max_tokens = from.max_tokens,
          .dtype = reader.Rows("dtype", from.dtype),
          .rows = from.rows,
          .ids = from.ids,
          .batched = from.batched,
          .slot_pos = from.slot_pos,
          .counts = from.counts,
          .overflow = from.overflow};
}

FusedGatherReduceArgs Read(const expertd_fused_gather_reduce_args& from, Reader& reader) {
  return {.n = from.n,
          .d = from.d,
          .k = from.k,
          .r = from.r,
          .dtype = reader.Rows("dtype", from.dtype),
          .out_dtype = reader.Rows("out_dtype", from.out_dtype),
          .expert_out = from.expert_out,
          .slot_row = from.slot_row,
          .weights = from.weights,
          .out = from.out};
}

FusedWeightedScatterArgs Read(const expertd_fused_weighted_scatter_args& from, Reader& reader) {
  return {.n = from.n,
          .d = from.d,
          .k = from.k,
          .r = from.r,
          .dtype = reader.Rows("dtype", from.dtype),
          .grad_out = from.grad_out,
          .slot_row = from.slot_row,
          .weights = from.weights,
          .grad_expert = from.grad_expert};
}

FusedRoutingWeightGradArgs Read(const expertd_fused_routing_weight_grad_args& from, Reader& reader) {
  return {.n = from.n,
          .d = from.d,
          .k = from.k,
          .r = from.r,
          .dtype = reader.Rows("dtype", from.dtype),
          .expert_out = from.expert_out,
          .grad_out = from.grad_out,
          .slot_row = from.slot_row,
          .grad_weights = from.grad_weights};
}

FusedDispatchPackArgs Read(const expertd_fused_dispatch_pack_args& from, Reader&) {
  return {.n = from.n,
          .d = from.d,
          .e = from.e,
          .k = from.k,
          .shards = from.shards,
          .rows = from.rows,
          .ids = from.ids,
          .packed = from.packed,
          .source = from.source,
          .counts = from.counts};
}

MoeGroupedGemmArgs Read(const expertd_moe_grouped_gemm_args& from, Reader& reader) {
  return {.positions = from.positions,
          .e = from.e,
          .in = from.in,
          .out_features = from.out_features,
          .dtype = reader.Rows("dtype", from.dtype),
          .x = from.x,
          .gather = from.gather,
          .offsets = from.offsets,
          .w = from.w,
          .out = from.out};
}

MoeWeightGradArgs Read(const expertd_moe_weight_grad_args& from, Reader& reader) {
  return {.positions = from.positions,
          .e = from.e,
          .in = from.in,
          .out_features = from.out_features,
          .dtype = reader.Rows("dtype", from.dtype),
          .w_dtype = reader.Rows("w_dtype", from.w_dtype),
          .grad_out = from.grad_out,
          .x = from.x,
          .offsets = from.offsets,
          .grad_w = from.grad_w};
}

template <typename From, typename Body>
absl::Status WithArgs(const From* from, const Body& body) {
  if (from == nullptr) return absl::InvalidArgumentError("args: is null");
  Reader reader;
  const auto args = Read(*from, reader);
  return reader.status().ok() ? body(args) : reader.status();
}

// `host` and `device` are the op's two implementations.
template <typename From, typename Host, typename Device>
expertd_status Run(const From* from, const expertd_launch* launch, const Host& host, const Device& device) {
  return Guarded([&]() -> absl::Status {
    if (absl::Status status = CheckLaunch(launch); !status.ok()) return status;
    return WithArgs(
        from, [&](const auto& args) { return launch->device == EXPERTD_HOST ? host(args) : device(args, *launch); });
  });
}

#ifdef EXPERTD_WITH_CUDA
template <typename Args>
constexpr bool kHasWorkspace = requires(const Args& args) {
  cuda::WorkspaceBytes(args);
};

template <typename Args, typename Op>
absl::Status OnDevice(const Args& args, const expertd_launch& launch, const Op& op) {
  const absl::StatusOr<DeviceScope> scope = DeviceScope::Enter(launch.device);
  return scope.ok() ? op(args, cuda::Workspace{launch.workspace, launch.workspace_bytes}, cuda::Stream{launch.stream})
                    : scope.status();
}
// The op `name` of kernels/cuda as a function object, whether it has a workspace or not.
#define EXPERTD_DEVICE_OP(name)                                                                       \
  [](const auto& args, const expertd_launch& launch) {                                                \
    return OnDevice(args, launch, [](const auto& a, cuda::Workspace workspace, cuda::Stream stream) { \
      if constexpr (kHasWorkspace<std::decay_t<decltype(a)>>) {                                       \
        return cuda::name(a, workspace, stream);                                                      \
      } else {                                                                                        \
        return cuda::name(a, stream);                                                                 \
      }                                                                                               \
    });                                                                                               \
  }
#else
#define EXPERTD_DEVICE_OP(name) [](const auto&, const expertd_launch&) { return NoCuda(); }
#endif

template <typename From>
expertd_status Workspace(const From* from, std::int64_t* bytes) {
  return Guarded([&]() -> absl::Status {
    if (bytes == nullptr) return absl::InvalidArgumentError("bytes: is null");
    return WithArgs(from, [&]([[maybe_unused]] const auto& args) -> absl::Status {
#ifdef EXPERTD_WITH_CUDA
      *bytes = cuda::WorkspaceBytes(args);
      return absl::OkStatus();
#else
      return NoCuda();
#endif
    });
  });
}

}  // namespace
}  // namespace expertd::c

// One function of the ABI: expertd_<op> runs kernels/ops.h's <name>.
#define EXPERTD_DEFINE_OP(op, name)                                                               \
  expertd_status expertd_##op(const expertd_##op##_args* args, const expertd_launch* launch) {    \
    using namespace expertd;                                                                      \
    using namespace expertd::c;                                                                   \
    return Run(                                                                                   \
        args, launch, [](const auto& a) { return reference::name(a); }, EXPERTD_DEVICE_OP(name)); \
  }
EXPERTD_DEFINE_OP(activation_forward, ActivationForward)
EXPERTD_DEFINE_OP(activation_backward, ActivationBackward)
EXPERTD_DEFINE_OP(fused_topk_routing, FusedTopkRouting)
EXPERTD_DEFINE_OP(moe_align_block_size, MoeAlignBlockSize)
EXPERTD_DEFINE_OP(fused_routing_scatter, FusedRoutingScatter)
EXPERTD_DEFINE_OP(fused_gather_reduce, FusedGatherReduce)
EXPERTD_DEFINE_OP(fused_weighted_scatter, FusedWeightedScatter)
EXPERTD_DEFINE_OP(fused_routing_weight_grad, FusedRoutingWeightGrad)
EXPERTD_DEFINE_OP(fused_dispatch_pack, FusedDispatchPack)
EXPERTD_DEFINE_OP(moe_grouped_gemm, MoeGroupedGemm)
EXPERTD_DEFINE_OP(fused_moe_forward, FusedMoeForward)
EXPERTD_DEFINE_OP(moe_weight_grad, MoeWeightGrad)

#define EXPERTD_DEFINE_WORKSPACE(op)                                                              \
  expertd_status expertd_##op##_workspace(const expertd_##op##_args* args, std::int64_t* bytes) { \
    return expertd::c::Workspace(args, bytes);                                                    \
  }
EXPERTD_DEFINE_WORKSPACE(moe_align_block_size)
EXPERTD_DEFINE_WORKSPACE(fused_routing_scatter)
EXPERTD_DEFINE_WORKSPACE(fused_weighted_scatter)
EXPERTD_DEFINE_WORKSPACE(fused_dispatch_pack)
EXPERTD_DEFINE_WORKSPACE(fused_moe_forward)

std::int64_t expertd_padded_slots(std::int64_t slots, std::int64_t e, std::int64_t block) {
  return slots < 0 || e < 0 || block < 1 ? 0 : expertd::PaddedSlots(slots, e, block);
}
