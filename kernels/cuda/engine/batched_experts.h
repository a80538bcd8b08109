// The experts' products on the batched path: rows padded to [E, rows, D], one product of cuBLAS for all experts.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/engine/cuda_layer.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/ops.h"

namespace expertd::cuda {

// Not thread-safe. The calling thread's current device is the one that it was made on.
class BatchedExperts {
 public:
  // Takes `bytes` of device memory for the padded rows and cuBLAS's scratch. FailedPrecondition: there is no cuBLAS;
  // ResourceExhausted: the memory is not there.
  static absl::StatusOr<std::unique_ptr<BatchedExperts>> Create(std::int64_t bytes);

  // Whether rows of this type meet weights of the same type, which is what cuBLAS multiplies; the others go the sorted
  // path.
  static bool Multiplies(const DeviceExperts& experts, DType dtype);

  // InvalidArgument when the layer's weights are of a type that no rows have; ResourceExhausted when one row an expert
  // does not fit.
  absl::Status CheckFits(const LayerSpec& spec, const DeviceExperts& experts) const;

  // out[p] = down . act(gate_up . x[sorted_slots[p] / rows_divisor]) for the sorted positions p of each expert. Waits
  // once, for the experts' sizes: (E + 1) x 4 bytes that come back to the host. So it cannot be captured.
  struct Batch {
    const LayerSpec& spec;
    const DeviceExperts& experts;
    DType dtype = DType::kBF16;
    const void* x = nullptr;
    std::int64_t rows_divisor = 1;
    const std::int32_t* sorted_slots = nullptr;
    const std::int32_t* offsets = nullptr;  // [E + 1], on the device
    void* out = nullptr;
  };
  absl::Status Run(const Batch& batch, Stream stream);

 private:
  BatchedExperts() = default;
  // Bytes that the rows may have.
  std::int64_t RowBytes() const { return memory_.bytes() - Cublas::kWorkspaceBytes; }
  absl::StatusOr<std::int64_t> MostRows(const Batch& batch, Stream stream);
  absl::Status RunPass(const Batch& batch, std::int64_t first, std::int64_t rows, Stream stream);

  std::unique_ptr<Cublas> cublas_;
  Memory memory_;   // of the rows, then of cuBLAS
  Memory offsets_;  // page-locked
};

}  // namespace expertd::cuda
