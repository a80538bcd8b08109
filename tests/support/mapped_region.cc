#include "tests/support/mapped_region.h"

#include <cuda_runtime_api.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "absl/strings/str_cat.h"

namespace expertd::testing {
namespace {

absl::Status FromCuda(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return absl::OkStatus();
  cudaGetLastError();
  return absl::InternalError(absl::StrCat(what, ": ", cudaGetErrorName(error), ": ", cudaGetErrorString(error)));
}

std::string UuidOf(const cudaUUID_t& uuid) {
  std::string text = "GPU-";
  for (std::size_t i = 0; i < sizeof(uuid.bytes); ++i) {
    char digits[4];
    std::snprintf(digits, sizeof(digits), "%02x", static_cast<unsigned char>(uuid.bytes[i]));
    absl::StrAppend(&text, i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", digits);
  }
  return text;
}

}  // namespace

absl::StatusOr<std::unique_ptr<MappedRegion>> MappedRegion::Open(const client::DeviceRegion& region) {
  cudaIpcMemHandle_t handle;
  if (region.ipc_handle.size() != sizeof(handle)) return absl::InternalError("ipc_handle: is not 64 bytes");
  std::memcpy(&handle, region.ipc_handle.data(), sizeof(handle));
  int count = 0;
  if (absl::Status status = FromCuda(cudaGetDeviceCount(&count), "cudaGetDeviceCount"); !status.ok()) return status;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties;
    if (auto s = FromCuda(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties"); !s.ok()) return s;
    if (UuidOf(properties.uuid) != region.device_uuid) continue;
    void* data = nullptr;
    absl::Status status = FromCuda(cudaSetDevice(device), "cudaSetDevice");
    if (status.ok()) {
      status = FromCuda(cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess), "cudaIpcOpenMemHandle");
    }
    if (!status.ok()) return status;
    return std::unique_ptr<MappedRegion>(new MappedRegion(data, region.size));
  }
  return absl::UnavailableError(absl::StrCat("device_uuid: this machine has no ", region.device_uuid));
}

MappedRegion::~MappedRegion() { cudaIpcCloseMemHandle(data_); }

// From and to pageable memory: the copy is done when the call returns.
absl::Status MappedRegion::Write(std::uint64_t offset, const void* from, std::size_t bytes) {
  absl::Status status = FromCuda(cudaMemcpy(data_ + offset, from, bytes, cudaMemcpyHostToDevice), "write");
  return status.ok() ? FromCuda(cudaStreamSynchronize(nullptr), "write") : status;
}

absl::Status MappedRegion::Read(std::uint64_t offset, void* to, std::size_t bytes) const {
  return FromCuda(cudaMemcpy(to, data_ + offset, bytes, cudaMemcpyDeviceToHost), "read");
}

absl::Status MappedRegion::Fill(unsigned char value) {
  absl::Status status = FromCuda(cudaMemset(data_, value, size_), "fill");
  return status.ok() ? FromCuda(cudaStreamSynchronize(nullptr), "fill") : status;
}

}  // namespace expertd::testing
