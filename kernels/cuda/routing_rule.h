// A routing rule as the kernels know it.
#pragma once

#include "kernels/cuda/topk_routing.h"
#include "kernels/layer_spec.h"

namespace expertd::cuda {

PlainRule PlainOf(const RoutingRule& rule);

}  // namespace expertd::cuda
