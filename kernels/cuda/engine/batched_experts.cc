#include "kernels/cuda/engine/batched_experts.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/engine/batched_plan.h"
#include "kernels/cuda/engine/batched_rows.h"
#include "kernels/cuda/engine/expert_rows.h"
#include "kernels/cuda/host.h"

namespace expertd::cuda {

absl::StatusOr<std::unique_ptr<BatchedExperts>> BatchedExperts::Create(std::int64_t bytes) {
  std::unique_ptr<BatchedExperts> made(new BatchedExperts);
  if (bytes <= Cublas::kWorkspaceBytes) {
    return absl::ResourceExhaustedError(absl::StrCat("workspace: ", bytes, " bytes for the batched path, cuBLAS takes ",
                                                     Cublas::kWorkspaceBytes, " of them"));
  }
  auto cublas = Cublas::Create();
  if (!cublas.ok()) return cublas.status();
  made->cublas_ = *std::move(cublas);
  auto memory = Memory::Allocate(MemoryKind::kDevice, bytes, "workspace of the batched path");
  if (!memory.ok()) return memory.status();
  made->memory_ = *std::move(memory);
  auto offsets = Memory::Allocate(MemoryKind::kPinned, (kMaxExperts + 1) * 4, "experts' sizes");
  if (!offsets.ok()) return offsets.status();
  made->offsets_ = *std::move(offsets);
  return made;
}

bool BatchedExperts::Multiplies(const DeviceExperts& experts, DType dtype) {
  const WeightCode code = dtype == DType::kBF16 ? WeightCode::kBF16 : WeightCode::kF32;
  return experts.gate_up.code == code && experts.down.code == code;
}

absl::Status BatchedExperts::CheckFits(const LayerSpec& spec, const DeviceExperts& experts) const {
  for (const DType dtype : {DType::kBF16, DType::kF32}) {
    if (!Multiplies(experts, dtype)) continue;
    const BatchedPlan one = PlaceBatched(experts.count, 1, experts.d, experts.f, BitsOf(dtype) / 8);
    if (one.bytes <= RowBytes()) return absl::OkStatus();
    return absl::ResourceExhaustedError(absl::StrCat("workspace: ", RowBytes(),
                                                     " bytes of the batched path, one row for each of ", experts.count,
                                                     " experts of ", spec.Name(), " takes ", one.bytes));
  }
  return absl::InvalidArgumentError(absl::StrCat("path: batched multiplies bf16 and f32 weights, those of ",
                                                 spec.Name(), " are ", WeightFormatName(spec.expert_format)));
}

absl::StatusOr<std::int64_t> BatchedExperts::MostRows(const Batch& batch, Stream stream) {
  const std::int64_t experts = batch.experts.count;
  absl::Status status = Copy(offsets_.data(), batch.offsets, (experts + 1) * 4, stream.handle);
  if (status.ok()) status = FromCuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream.handle)), "experts' sizes");
  if (!status.ok()) return status;
  const auto* const offsets = reinterpret_cast<const std::int32_t*>(offsets_.data());
  std::int64_t most = 0;
  for (std::int64_t e = 0; e < experts; ++e) most = std::max<std::int64_t>(most, offsets[e + 1] - offsets[e]);
  return most;
}

absl::Status BatchedExperts::Run(const Batch& batch, Stream stream) {
  const absl::StatusOr<std::int64_t> most = MostRows(batch, stream);
  if (!most.ok()) return most.status();
  const DeviceExperts& experts = batch.experts;
  const std::int64_t rows =
      PlanBatched(experts.count, *most, experts.d, experts.f, BitsOf(batch.dtype) / 8, RowBytes()).rows;
  if (rows == 0 && *most > 0) return CheckFits(batch.spec, experts);
  absl::Status status;
  for (std::int64_t first = 0; first < *most && status.ok(); first += rows) {
    status = RunPass(batch, first, std::min(rows, *most - first), stream);
  }
  return status;
}

// Positions [first, first + rows) of every expert.
absl::Status BatchedExperts::RunPass(const Batch& batch, std::int64_t first, std::int64_t rows, Stream stream) {
  const DeviceExperts& experts = batch.experts;
  const Element element = ElementOf(batch.dtype);
  const BatchedPlan plan = PlaceBatched(experts.count, rows, experts.d, experts.f, SizeOf(element));
  std::byte* const base = memory_.data();
  std::byte* const scratch = base + RowBytes() / 256 * 256;
  const BatchedRowsLaunch part = {.experts = experts.count,
                                  .rows = rows,
                                  .d = experts.d,
                                  .first = first,
                                  .element = element,
                                  .offsets = batch.offsets};
  auto* const offsets = reinterpret_cast<std::int32_t*>(base + plan.offsets);
  const ToBatchedLaunch to = {.part = part,
                              .sorted_slots = batch.sorted_slots,
                              .x = batch.x,
                              .rows_divisor = batch.rows_divisor,
                              .batched = base + plan.x,
                              .batch_offsets = offsets};
  const ExpertActivationLaunch activation = {.positions = experts.count * rows,
                                             .experts = experts.count,
                                             .f = experts.f,
                                             .gate = GateOf(batch.spec.activation),
                                             .limit = batch.spec.swiglu_limit,
                                             .alpha = batch.spec.swiglu_alpha,
                                             .element = element,
                                             .offsets = offsets,
                                             .in = reinterpret_cast<const float*>(base + plan.gate_up),
                                             .bias = reinterpret_cast<const float*>(experts.gate_up.bias),
                                             .out = base + plan.hidden};
  const FromBatchedLaunch from = {.part = part, .batched = base + plan.out, .sorted = batch.out};
  const auto multiply = [&](const DeviceMatrix& matrix, std::int64_t x, std::int64_t out, bool wide_out) {
    return cublas_->Multiply({.experts = experts.count,
                              .rows = rows,
                              .in = matrix.in,
                              .out_features = matrix.out,
                              .element = element,
                              .wide_out = wide_out,
                              .x = base + x,
                              .w = matrix.codes,
                              .out = base + out},
                             scratch, stream);
  };
  absl::Status status = FromCuda(LaunchToBatched(to, stream.handle), "rows to experts");
  if (status.ok()) status = multiply(experts.gate_up, plan.x, plan.gate_up, true);
  if (status.ok()) status = FromCuda(LaunchExpertActivation(activation, stream.handle), "activation");
  if (status.ok()) status = multiply(experts.down, plan.hidden, plan.out, false);
  if (status.ok()) status = FromCuda(LaunchFromBatched(from, stream.handle), "rows from experts");
  return status;
}

}  // namespace expertd::cuda
