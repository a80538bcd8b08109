// Device side of activation_forward and activation_backward, for plain callers.
#pragma once

#include <cstdint>

#include "kernels/cuda/plain.h"

namespace expertd::cuda {

struct ActivationLaunch {
  std::int64_t m = 0, f = 0;
  Gate gate = Gate::kSilu;
  float limit = 0, alpha = 0;
  bool interleaved = false;
  Element element = Element::kBF16;
  bool vectorised = false;             // 16-byte accesses: f a multiple of VectorElements and all pointers aligned
  const std::int32_t* held = nullptr;  // one number on the device: rows from there on are left alone; null: m
  const void* in = nullptr;            // [m, 2f]
  const void* grad_out = nullptr;      // [m, f]   backward; null for forward
  void* out = nullptr;                 // forward [m, f], backward [m, 2f]
};

// Enqueues one kernel on `stream` (a cudaStream_t); the answer is a cudaError_t.
int LaunchActivation(const ActivationLaunch& launch, void* stream);

}  // namespace expertd::cuda
