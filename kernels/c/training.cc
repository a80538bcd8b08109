// moe_forward and moe_backward behind the C ABI: kernels/cuda on a device, the double reference on the host.
#include <string>
#include <vector>

#include "kernels/c/expertd_ops.h"
#include "kernels/c/read_args.h"
#include "kernels/c/status.h"
#include "kernels/ops_check.h"
#include "kernels/reference/backward.h"
#include "kernels/reference/elements.h"
#include "kernels/reference/ops.h"
#ifdef EXPERTD_WITH_CUDA
#include "kernels/c/device_scope.h"
#include "kernels/cuda/moe_backward.h"
#endif

namespace expertd::c {
namespace {

// The fields that both directions have, translated.
struct Training {
  FusedMoeForwardArgs forward;
  int recompute = 0;
  DType w_dtype = DType::kF32;
};

absl::StatusOr<Training> ReadTraining(const expertd_fused_moe_forward_args& forward, std::int32_t recompute,
                                      std::int32_t w_dtype) {
  Reader reader;
  Training read = {.forward = Read(forward, reader),
                   .recompute = reader.Of("recompute", recompute, static_cast<int>(EXPERTD_RECOMPUTE_ACTIVATIONS)),
                   .w_dtype = reader.Rows("w_dtype", w_dtype)};
  if (!reader.status().ok()) return reader.status();
  return read;
}

expertd_status NullArgs() {
  return Report(absl::StatusCode::kInvalidArgument, "args, or where to put an answer: is null");
}

std::vector<double> Doubles(const void* from, DType dtype, std::int64_t count) {
  const reference::In in(from, dtype);
  std::vector<double> values(static_cast<std::size_t>(count));
  for (std::int64_t i = 0; i < count; ++i) values[i] = in[i];
  return values;
}

void Write(const std::vector<double>& values, DType dtype, void* to) {
  if (to == nullptr) return;
  const reference::Out out(to, dtype);
  for (std::size_t i = 0; i < values.size(); ++i) out.Set(static_cast<std::int64_t>(i), values[i]);
}

absl::Status BackwardOnHost(const Training& training, const expertd_moe_backward_args& args) {
  FusedMoeForwardArgs f = training.forward;
  f.out = args.grad_rows;  // not used; what has to be there is the gradient
  absl::Status status = Check(f);
  if (status.ok() && f.n > 0) status = CheckIndices("ids", {f.ids, static_cast<std::size_t>(f.n * f.k)}, f.e);
  if (!status.ok()) return status;
  if (f.n > 0 && (args.grad_out == nullptr || args.grad_weights == nullptr)) {
    return absl::InvalidArgumentError("grad_out, grad_weights: must not be null");
  }
  const reference::MoeProblem problem = {.n = f.n,
                                         .d = f.d,
                                         .e = f.e,
                                         .k = f.k,
                                         .f = f.f,
                                         .rule = {.weight_on_input = f.weight_on_input},
                                         .activation = f.activation,
                                         .limit = f.limit,
                                         .alpha = f.alpha,
                                         .rows = Doubles(f.rows, f.dtype, f.n * f.d),
                                         .gate_up = Doubles(f.gate_up, f.dtype, f.e * 2 * f.f * f.d),
                                         .down = Doubles(f.down, f.dtype, f.e * f.d * f.f)};
  const auto forward =
      reference::ExpertsForward(problem, {f.ids, f.ids + f.n * f.k}, Doubles(f.weights, DType::kF32, f.n * f.k));
  if (!forward.ok()) return forward.status();
  const auto gradients = reference::ExpertsBackward(problem, *forward, Doubles(args.grad_out, f.dtype, f.n * f.d));
  if (!gradients.ok()) return gradients.status();
  Write(gradients->rows, f.dtype, args.grad_rows);
  Write(gradients->topk_weights, DType::kF32, args.grad_weights);
  Write(gradients->gate_up, training.w_dtype, args.grad_gate_up);
  Write(gradients->down, training.w_dtype, args.grad_down);
  return absl::OkStatus();
}

#ifdef EXPERTD_WITH_CUDA
cuda::Workspace WorkspaceOf(const expertd_launch& launch) { return {launch.workspace, launch.workspace_bytes}; }
cuda::Recompute RecomputeOf(const Training& training) { return static_cast<cuda::Recompute>(training.recompute); }

cuda::MoeBackwardArgs DeviceArgs(const Training& training, const expertd_moe_backward_args& args) {
  return {.forward = training.forward,
          .recompute = RecomputeOf(training),
          .w_dtype = training.w_dtype,
          .grad_out = args.grad_out,
          .grad_rows = args.grad_rows,
          .grad_weights = args.grad_weights,
          .grad_gate_up = args.grad_gate_up,
          .grad_down = args.grad_down};
}

absl::Status ForwardOnDevice(const Training& training, const expertd_moe_forward_args& args,
                             const expertd_launch& launch) {
  const auto scope = DeviceScope::Enter(launch.device);
  if (!scope.ok()) return scope.status();
  return cuda::MoeForward(training.forward, RecomputeOf(training), {args.saved, args.saved_bytes}, WorkspaceOf(launch),
                          {launch.stream});
}

absl::Status BackwardOnDevice(const Training& training, const expertd_moe_backward_args& args,
                              const expertd_launch& launch) {
  const auto scope = DeviceScope::Enter(launch.device);
  if (!scope.ok()) return scope.status();
  return cuda::MoeBackward(DeviceArgs(training, args), {args.saved, args.saved_bytes}, WorkspaceOf(launch),
                           {launch.stream});
}

absl::Status ForwardSizes(const Training& training, std::int64_t& saved_bytes, std::int64_t& workspace_bytes) {
  saved_bytes = cuda::SavedBytes(training.forward, RecomputeOf(training));
  workspace_bytes = cuda::MoeForwardWorkspaceBytes(training.forward, RecomputeOf(training));
  return absl::OkStatus();
}

absl::Status BackwardWorkspace(const Training& training, const expertd_moe_backward_args& args, int device,
                               std::int64_t& bytes) {
  const auto scope = DeviceScope::Enter(device);
  if (!scope.ok()) return scope.status();
  bytes = cuda::WorkspaceBytes(DeviceArgs(training, args));
  return absl::OkStatus();
}
#else
template <typename... Args>
absl::Status ForwardOnDevice(const Args&...) {
  return NoCuda();
}
template <typename... Args>
absl::Status BackwardOnDevice(const Args&...) {
  return NoCuda();
}
template <typename... Args>
absl::Status ForwardSizes(const Args&...) {
  return NoCuda();
}
template <typename... Args>
absl::Status BackwardWorkspace(const Args&...) {
  return NoCuda();
}
#endif

// Reads what is common to `args` and goes on with body(training).
template <typename Args, typename Body>
expertd_status WithTraining(const Args* args, std::int32_t w_dtype, const Body& body) {
  return Guarded([&]() -> absl::Status {
    const absl::StatusOr<Training> training = ReadTraining(args->forward, args->recompute, w_dtype);
    return training.ok() ? body(*training) : training.status();
  });
}

}  // namespace
}  // namespace expertd::c

namespace c = expertd::c;

expertd_status expertd_moe_forward(const expertd_moe_forward_args* args, const expertd_launch* launch) {
  if (args == nullptr) return c::NullArgs();
  return c::WithTraining(args, EXPERTD_F32, [&](const c::Training& training) {
    if (absl::Status status = c::CheckLaunch(launch); !status.ok()) return status;
    return launch->device == EXPERTD_HOST ? expertd::reference::FusedMoeForward(training.forward)
                                          : c::ForwardOnDevice(training, *args, *launch);
  });
}

expertd_status expertd_moe_forward_sizes(const expertd_moe_forward_args* args, int64_t* saved_bytes,
                                         int64_t* workspace_bytes) {
  if (args == nullptr || saved_bytes == nullptr || workspace_bytes == nullptr) return c::NullArgs();
  return c::WithTraining(args, EXPERTD_F32, [&](const c::Training& training) {
    return c::ForwardSizes(training, *saved_bytes, *workspace_bytes);
  });
}

expertd_status expertd_moe_backward(const expertd_moe_backward_args* args, const expertd_launch* launch) {
  if (args == nullptr) return c::NullArgs();
  return c::WithTraining(args, args->w_dtype, [&](const c::Training& training) {
    if (absl::Status status = c::CheckLaunch(launch); !status.ok()) return status;
    return launch->device == EXPERTD_HOST ? c::BackwardOnHost(training, *args)
                                          : c::BackwardOnDevice(training, *args, *launch);
  });
}

expertd_status expertd_moe_backward_workspace(const expertd_moe_backward_args* args, int32_t device, int64_t* bytes) {
  if (args == nullptr || bytes == nullptr) return c::NullArgs();
  return c::WithTraining(args, args->w_dtype, [&](const c::Training& training) {
    return c::BackwardWorkspace(training, *args, device, *bytes);
  });
}
