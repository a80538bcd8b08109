#include "kernels/c/device_scope.h"

#include <cuda_runtime_api.h>

#include "absl/strings/str_cat.h"

namespace expertd::c {

absl::StatusOr<DeviceScope> DeviceScope::Enter(int device) {
  int before = 0;
  cudaError_t error = cudaGetDevice(&before);
  if (error == cudaSuccess && before == device) return DeviceScope(kNothing);
  if (error == cudaSuccess) error = cudaSetDevice(device);
  if (error == cudaSuccess) return DeviceScope(before);
  cudaGetLastError();
  return absl::UnavailableError(absl::StrCat("launch.device: cuda:", device, ": ", cudaGetErrorString(error)));
}

DeviceScope::~DeviceScope() {
  if (before_ != kNothing) cudaSetDevice(before_);
}

}  // namespace expertd::c
