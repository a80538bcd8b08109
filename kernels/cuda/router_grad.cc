#include "kernels/cuda/router_grad.h"

#include "kernels/cuda/host.h"
#include "kernels/cuda/moe_backward.h"
#include "kernels/cuda/routing_rule.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {

absl::Status FusedRouterGrad(const RouterGradArgs& args, Stream stream) {
  // The forward's arguments have the same limits; the gradient stands in for what the forward writes.
  FusedTopkRoutingArgs forward = {.n = args.n, .e = args.e, .k = args.k, .rule = args.rule, .logits = args.logits};
  forward.correction_bias = args.logits;  // only chooses: it is not read here
  forward.ids = const_cast<std::int32_t*>(args.ids), forward.weights = args.grad_logits;
  if (absl::Status status = Check(forward); !status.ok() || args.n == 0) return status;
  if (args.grad_weights == nullptr) return absl::InvalidArgumentError("grad_weights: is null");
  if (args.rule.weigh == Weigh::kSparseMixer) {
    return absl::InvalidArgumentError("rule: the sparse mixer has no gradient here");
  }
  const RouterGradLaunch launch = {.routing = {.n = args.n,
                                               .e = static_cast<int>(args.e),
                                               .k = static_cast<int>(args.k),
                                               .rule = PlainOf(args.rule),
                                               .logits = args.logits,
                                               .ids = const_cast<std::int32_t*>(args.ids)},
                                   .grad_weights = args.grad_weights,
                                   .grad_logits = args.grad_logits};
  return FromCuda(LaunchRouterGrad(launch, stream.handle), "fused_router_grad");
}

}  // namespace expertd::cuda
