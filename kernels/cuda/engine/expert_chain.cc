#include "kernels/cuda/engine/expert_chain.h"

#include "kernels/cuda/engine/expert_rows.h"
#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/hopper/fp8_rows.h"
#include "kernels/cuda/row_ops.h"

namespace expertd::cuda {
namespace {

// One GEMM of some experts over sorted positions.
struct Product {
  const DeviceMatrix& matrix;
  std::int64_t positions = 0, experts = 0;
  const void* x = nullptr;
  const std::int32_t* gather = nullptr;
  std::int64_t rows_divisor = 1;
  const std::int32_t* offsets = nullptr;
  void* out = nullptr;
  bool wide_out = false;  // f32
};
absl::Status Multiply(const Product& product, DType dtype, Stream stream) {
  return EnqueueGroupedGemm({.positions = product.positions,
                             .experts = product.experts,
                             .in = product.matrix.in,
                             .out_features = product.matrix.out,
                             .element = ElementOf(dtype),
                             .wide_out = product.wide_out,
                             .weights = product.matrix.code,
                             .x = product.x,
                             .gather = product.gather,
                             .rows_divisor = static_cast<int>(product.rows_divisor),
                             .offsets = product.offsets,
                             .w = product.matrix.codes,
                             .scales = product.matrix.scales,
                             .packing = product.matrix.packing,
                             .out = product.out},
                            stream);
}

absl::Status Activate(const ExpertWork& work, Stream stream) {
  const ExpertActivationLaunch launch = {.positions = work.positions,
                                         .experts = work.experts.count,
                                         .f = work.experts.f,
                                         .gate = GateOf(work.spec.activation),
                                         .limit = work.spec.swiglu_limit,
                                         .alpha = work.spec.swiglu_alpha,
                                         .element = ElementOf(work.dtype),
                                         .offsets = work.offsets,
                                         .in = work.chain.gate_up,
                                         .bias = reinterpret_cast<const float*>(work.experts.gate_up.bias),
                                         .out = work.chain.hidden};
  return FromCuda(LaunchExpertActivation(launch, stream.handle), "activation");
}

FusedWork WorkOf(std::int64_t positions, const DeviceExperts& experts) {
  return {positions, experts.count, experts.d, experts.f, experts.gate_up.code};
}

absl::Status QuantiseRows(const ExpertWork& work, Stream stream) {
  const ExpertChain& chain = work.chain;
  const QuantiseRowsLaunch launch = {.n = chain.coded_rows,
                                     .d = work.experts.d,
                                     .from = chain.spread != nullptr ? chain.spread : work.x,
                                     .codes = chain.codes,
                                     .scales = chain.code_scales,
                                     .fresh = chain.spread != nullptr};
  return FromCuda(LaunchQuantiseRows(launch, stream.handle), "rows in fp8");
}

absl::Status Fused(const ExpertWork& work, Stream stream) {
  const ExpertChain& chain = work.chain;
  const std::byte* rows = chain.spread != nullptr ? chain.spread : work.x;
  if (chain.codes != nullptr) {
    if (absl::Status status = QuantiseRows(work, stream); !status.ok()) return status;
    rows = chain.codes;
  }
  return EnqueueFusedForward({.positions = work.positions,
                              .experts = work.experts.count,
                              .d = work.experts.d,
                              .f = work.experts.f,
                              .weights = work.experts.gate_up.code,
                              .gate = GateOf(work.spec.activation),
                              .limit = work.spec.swiglu_limit,
                              .alpha = work.spec.swiglu_alpha,
                              .tokens = UnitTokens(work.n),
                              .ids = chain.spread != nullptr ? nullptr : work.ids,
                              .offsets = work.offsets,
                              .sorted_slots = work.sorted_slots,
                              .rows = rows,
                              .rows_divisor = chain.spread != nullptr ? 1 : static_cast<int>(work.k),
                              .row_scales = chain.code_scales,
                              .row_scale_pitch = chain.coded_rows,
                              .packed = work.experts.gate_up.packing != Packing::kNone,
                              .gate_up = work.experts.gate_up.codes,
                              .down = work.experts.down.codes,
                              .gate_up_bias = reinterpret_cast<const float*>(work.experts.gate_up.bias),
                              .hidden = chain.hidden,
                              .hidden_scales = chain.hidden_scales,
                              .slots = chain.out,
                              .counters = chain.counters},
                             stream);
}

absl::Status Sorted(const ExpertWork& work, Stream stream) {
  const ExpertChain& chain = work.chain;
  absl::Status status = Multiply({.matrix = work.experts.gate_up,
                                  .positions = work.positions,
                                  .experts = work.experts.count,
                                  .x = chain.spread != nullptr ? chain.spread : work.x,
                                  .gather = work.sorted_slots,
                                  .rows_divisor = chain.spread != nullptr ? 1 : work.k,
                                  .offsets = work.offsets,
                                  .out = chain.gate_up,
                                  .wide_out = true},
                                 work.dtype, stream);
  if (status.ok()) status = Activate(work, stream);
  if (!status.ok()) return status;
  return Multiply({.matrix = work.experts.down,
                   .positions = work.positions,
                   .experts = work.experts.count,
                   .x = chain.hidden,
                   .offsets = work.offsets,
                   .out = chain.out},
                  work.dtype, stream);
}

}  // namespace

std::int64_t ChainCounters(std::int64_t positions, const DeviceExperts& experts, DType dtype) {
  if (!experts.fused || dtype != DType::kBF16 || positions == 0) return 0;
  return FusedCounters(WorkOf(positions, experts));
}

ExpertChain PlaceChain(std::int64_t n, std::int64_t positions, const DeviceExperts& experts, DType dtype, bool on_input,
                       std::int32_t* counters, Scratch& scratch) {
  if (experts.count == 0) return {};
  const std::int64_t size = BitsOf(dtype) / 8;
  ExpertChain chain;
  chain.fused = ChainCounters(positions, experts, dtype) > 0;
  chain.counters = counters;
  if (!chain.fused) chain.gate_up = scratch.Take<float>(positions * 2 * experts.f);
  if (on_input) chain.spread = scratch.Take<std::byte>(positions * experts.d * size);
  if (chain.fused && experts.fp8_rows()) {
    chain.coded_rows = on_input ? positions : n;
    chain.codes = scratch.Take<std::byte>(chain.coded_rows * Fp8RowBytes(experts.d));
    chain.code_scales = scratch.Take<float>(chain.coded_rows * PackedSteps(experts.d));
    chain.hidden_scales = scratch.Take<float>(positions * PackedSteps(experts.f));
    chain.hidden = scratch.Take<std::byte>(positions * Fp8RowBytes(experts.f));
  } else {
    chain.hidden = scratch.Take<std::byte>(positions * experts.f * size);
  }
  chain.out = scratch.Take<std::byte>(positions * experts.d * size);
  return chain;
}

absl::Status SpreadChainRows(const ExpertWork& work, Stream stream) {
  if (work.chain.spread == nullptr) return absl::OkStatus();
  const Element element = ElementOf(work.dtype);
  const SpreadRowsLaunch spread = {.n = work.n,
                                   .d = work.experts.d,
                                   .k = work.k,
                                   .element = element,
                                   .vectorised = work.experts.d % VectorElements(element) == 0,
                                   .from = work.x,
                                   .weights = work.on_input,
                                   .to = work.chain.spread};
  return FromCuda(LaunchSpreadRows(spread, stream.handle), "rows of slots");
}

absl::Status RunChain(const ExpertWork& work, Stream stream) {
  if (absl::Status status = SpreadChainRows(work, stream); !status.ok()) return status;
  return work.chain.fused ? Fused(work, stream) : Sorted(work, stream);
}

}  // namespace expertd::cuda
