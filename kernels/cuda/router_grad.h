// Device side of the router's gradient, for plain callers.
#pragma once

#include "kernels/cuda/topk_routing.h"

namespace expertd::cuda {

struct RouterGradLaunch {
  TopkRoutingLaunch routing;  // n, e, k, rule, logits; ids are read
  const float* grad_weights = nullptr;
  float* grad_logits = nullptr;
};

// Enqueues one kernel on `stream` (a cudaStream_t); the answer is a cudaError_t.
int LaunchRouterGrad(const RouterGradLaunch& launch, void* stream);

}  // namespace expertd::cuda
