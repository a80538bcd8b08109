#include "kernels/cuda/host.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"

namespace expertd::cuda {

static_assert(static_cast<int>(Gate::kSilu) == static_cast<int>(Activation::kSilu));
static_assert(static_cast<int>(Gate::kGelu) == static_cast<int>(Activation::kGelu));
static_assert(static_cast<int>(Gate::kGeluTanh) == static_cast<int>(Activation::kGeluTanh));
static_assert(static_cast<int>(Gate::kRelu) == static_cast<int>(Activation::kRelu));
static_assert(static_cast<int>(Gate::kRelu2) == static_cast<int>(Activation::kRelu2));
static_assert(static_cast<int>(Gate::kSwigluOai) == static_cast<int>(Activation::kSwigluOai));

absl::Status FromCuda(int error, absl::string_view what) {
  const auto code = static_cast<cudaError_t>(error);
  if (code == cudaSuccess) return absl::OkStatus();
  const std::string message = absl::StrCat(what, ": ", cudaGetErrorName(code), ": ", cudaGetErrorString(code));
  switch (code) {
    case cudaErrorMemoryAllocation:
      return absl::ResourceExhaustedError(message);
    case cudaErrorNoDevice:
    case cudaErrorInsufficientDriver:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorSystemDriverMismatch:
      return absl::FailedPreconditionError(message);
    default:
      return absl::InternalError(message);
  }
}

absl::StatusOr<DeviceLimits> CurrentDevice() {
  int device = 0;
  DeviceLimits limits;
  int error = cudaGetDevice(&device);
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits.multiprocessors, cudaDevAttrMultiProcessorCount, device);
  }
  if (error == cudaSuccess) {
    error = cudaDeviceGetAttribute(&limits.shared_bytes_per_block, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  }
  int major = 0, minor = 0;
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  if (error != cudaSuccess) return FromCuda(error, "device limits");
  limits.compute_capability = 10 * major + minor;
  return limits;
}

absl::Status CheckWorkspace(const Workspace& workspace, std::int64_t bytes) {
  if (workspace.bytes < bytes || (bytes > 0 && workspace.data == nullptr)) {
    return absl::InvalidArgumentError(absl::StrCat("workspace: ", workspace.data == nullptr ? 0 : workspace.bytes,
                                                   " bytes are less than the ", bytes, " that this op needs"));
  }
  if (reinterpret_cast<std::uintptr_t>(workspace.data) % 256 != 0) {
    return absl::InvalidArgumentError("workspace: is not 256-byte aligned");
  }
  return absl::OkStatus();
}

}  // namespace expertd::cuda
