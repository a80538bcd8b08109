// The host side's few shared steps: translation of types, device limits, alignment, and the one place where a CUDA
// error becomes an absl::Status.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain.h"
#include "kernels/layer_spec.h"
#include "kernels/tensor.h"

namespace expertd::cuda {

// `error` is a cudaError_t. Out of memory becomes ResourceExhausted, a device that is absent or cannot run this code
// FailedPrecondition, every other error Internal; the message names `what` and CUDA's own name for the error.
absl::Status FromCuda(int error, absl::string_view what);

// Limits of the calling thread's current device.
absl::StatusOr<DeviceLimits> CurrentDevice();

// InvalidArgument when `workspace` does not hold `bytes`, or is not aligned.
absl::Status CheckWorkspace(const Workspace& workspace, std::int64_t bytes);

// bf16 and f32 only: callers have checked.
inline Element ElementOf(DType dtype) { return dtype == DType::kBF16 ? Element::kBF16 : Element::kF32; }
inline Gate GateOf(Activation activation) { return static_cast<Gate>(activation); }

// Whether every pointer can be accessed 16 bytes at a time. Null pointers can.
inline bool Aligned16(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16 != 0) return false;
  }
  return true;
}

// Scratch memory handed in by a caller, cut into 256-byte aligned pieces. With a null base it only counts, so that one
// function serves both an op and its size query.
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(void* base) : base_(static_cast<std::byte*>(base)) {}

  template <typename T>
  T* Take(std::int64_t count) {
    std::byte* here = base_ == nullptr ? nullptr : base_ + used_;
    used_ += (count * static_cast<std::int64_t>(sizeof(T)) + 255) / 256 * 256;
    return reinterpret_cast<T*>(here);
  }
  std::int64_t used() const { return used_; }

 private:
  std::byte* base_ = nullptr;
  std::int64_t used_ = 0;
};

}  // namespace expertd::cuda
