// The one product of cuBLAS that the batched path needs. The library is looked up by name when it is first wanted: it
// is large, and neither a server on its default path nor a machine without a GPU should have to install it.
#pragma once

#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/plain.h"

namespace expertd::cuda {

// A cuBLAS handle for the calling thread's current device. Not for several threads at once.
class Cublas {
 public:
  // Scratch memory that products may use: nothing is allocated behind the caller's back.
  static constexpr std::int64_t kWorkspaceBytes = std::int64_t{32} << 20;

  // Takes device memory and waits. FailedPrecondition when there is no libcublas.so.13 or .12 to load.
  static absl::StatusOr<std::unique_ptr<Cublas>> Create();
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  // out[e] = x[e] . w[e]^T for every expert: x [E, rows, in], w [E, out_features, in], out [E, rows, out_features]; f32
  // sums, in an order that cuBLAS chooses by the sizes. Enqueues on `stream`; `workspace` holds kWorkspaceBytes.
  struct Product {
    std::int64_t experts = 0, rows = 0, in = 0, out_features = 0;
    Element element = Element::kBF16;
    bool wide_out = false;  // out is f32 whatever the element
    const void* x = nullptr;
    const void* w = nullptr;
    void* out = nullptr;
  };
  absl::Status Multiply(const Product& product, void* workspace, Stream stream);

 private:
  Cublas() = default;
  void* handle_ = nullptr;
};

}  // namespace expertd::cuda
