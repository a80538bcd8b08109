#include "kernels/cuda/activation.h"

#include "kernels/cuda/enqueue.h"
#include "kernels/cuda/host.h"
#include "kernels/cuda/ops.h"
#include "kernels/ops_check.h"

namespace expertd::cuda {
namespace {

template <typename Args>
ActivationLaunch Describe(const Args& args) {
  const Element element = ElementOf(args.dtype);
  return {.m = args.m,
          .f = args.f,
          .gate = GateOf(args.activation),
          .limit = args.limit,
          .alpha = args.alpha,
          .interleaved = args.interleaved,
          .element = element,
          .vectorised = args.f % VectorElements(element) == 0,
          .in = args.in};
}

}  // namespace

absl::Status EnqueueActivation(const ActivationForwardArgs& args, const std::int32_t* held, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.m == 0) return status;
  ActivationLaunch launch = Describe(args);
  launch.held = held;
  launch.out = args.out;
  launch.vectorised = launch.vectorised && Aligned16({args.in, args.out});
  return FromCuda(LaunchActivation(launch, stream.handle), "activation_forward");
}

absl::Status EnqueueActivationGrad(const ActivationBackwardArgs& args, const std::int32_t* held, Stream stream) {
  if (absl::Status status = Check(args); !status.ok() || args.m == 0) return status;
  ActivationLaunch launch = Describe(args);
  launch.held = held;
  launch.grad_out = args.grad_out;
  launch.out = args.grad_in;
  launch.vectorised = launch.vectorised && Aligned16({args.in, args.grad_out, args.grad_in});
  return FromCuda(LaunchActivation(launch, stream.handle), "activation_backward");
}

absl::Status ActivationForward(const ActivationForwardArgs& args, Stream stream) {
  return EnqueueActivation(args, nullptr, stream);
}

absl::Status ActivationBackward(const ActivationBackwardArgs& args, Stream stream) {
  return EnqueueActivationGrad(args, nullptr, stream);
}

}  // namespace expertd::cuda
