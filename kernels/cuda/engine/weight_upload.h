// Weights on their way to the device, in pieces through a bounded page-locked buffer: one half is filled while the
// other is copied.
#pragma once

#include <array>
#include <cstdint>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/hopper/packed_weights.h"
#include "kernels/cuda/plain.h"
#include "kernels/tensor.h"

namespace expertd::cuda {

// Not thread-safe.
class WeightUpload {
 public:
  static absl::StatusOr<WeightUpload> Create();

  // `rows` rows of `row_bytes` each to the device at `to`; write(row, place) makes one, on any thread.
  absl::Status Rows(std::byte* to, std::int64_t rows, std::int64_t row_bytes,
                    absl::FunctionRef<void(std::int64_t row, std::byte* place)> write);
  // Waits until everything has arrived.
  absl::Status Finish();

  // The codes of a matrix as WeightCode has them, row after row; its scales likewise (nothing for codes without).
  absl::Status Codes(const WeightView& view, std::byte* to);
  absl::Status Scales(const WeightView& view, std::byte* to);
  // Weights with their scales as packed_weights.h says: gate and up, or one matrix.
  absl::Status Packed(WeightCode code, absl::Span<const WeightView> views, Packing packing, std::byte* to);
  // As f32.
  absl::Status Floats(const VectorView& view, std::byte* to);
  absl::Status Floats(const WeightView& view, std::byte* to);

 private:
  Memory staging_;
  OwnedStream stream_;
  std::array<OwnedEvent, 2> copied_;  // of each half
  int half_ = 0;
};

// InvalidArgument naming `what`: a dtype that no expert can have.
absl::StatusOr<WeightCode> CodeOf(const WeightView& view, absl::string_view what);
std::int64_t CodeRowBytes(WeightCode code, std::int64_t in);
std::int64_t ScaleRowBytes(WeightCode code, std::int64_t in);

}  // namespace expertd::cuda
