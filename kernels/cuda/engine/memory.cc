#include "kernels/cuda/engine/memory.h"

#include <cuda_runtime_api.h>

#include <memory>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/host.h"

namespace expertd::cuda {

absl::Status UseDevice(int device) { return FromCuda(cudaSetDevice(device), "cudaSetDevice"); }

absl::StatusOr<Memory> Memory::Allocate(MemoryKind kind, std::int64_t bytes, absl::string_view what) {
  Memory memory;
  memory.kind_ = kind;
  if (bytes == 0) return memory;
  void* data = nullptr;
  const auto size = static_cast<std::size_t>(bytes);
  const cudaError_t error =
      kind == MemoryKind::kDevice ? cudaMalloc(&data, size) : cudaHostAlloc(&data, size, cudaHostAllocPortable);
  if (error != cudaSuccess) {
    cudaGetLastError();  // an allocation that failed is no state of the device
    return FromCuda(error, absl::StrCat(what, ": ", bytes, " bytes"));
  }
  memory.data_ = static_cast<std::byte*>(data);
  memory.bytes_ = bytes;
  return memory;
}

Memory::~Memory() {
  if (data_ == nullptr) return;
  kind_ == MemoryKind::kDevice ? cudaFree(data_) : cudaFreeHost(data_);
}

namespace {

// Freed on its own device.
struct MemoryOfDevice {
  ~MemoryOfDevice() { cudaSetDevice(device); }
  const int device;
  const Memory memory;
};

}  // namespace

absl::StatusOr<ExportedMemory> Export(int device, std::size_t bytes) {
  if (absl::Status status = UseDevice(device); !status.ok()) return status;
  absl::StatusOr<OwnedStream> stream = OwnedStream::Create();
  if (!stream.ok()) return stream.status();
  auto memory = Memory::Allocate(MemoryKind::kDevice, static_cast<std::int64_t>(bytes), "exported memory");
  if (!memory.ok()) return memory.status();
  const std::shared_ptr<MemoryOfDevice> owner(new MemoryOfDevice{device, *std::move(memory)});
  std::byte* const data = owner->memory.data();
  const auto queue = static_cast<cudaStream_t>(stream->get());
  absl::Status status = FromCuda(cudaMemsetAsync(data, 0, bytes, queue), "exported memory");
  if (status.ok()) status = FromCuda(cudaStreamSynchronize(queue), "exported memory");
  if (!status.ok()) return status;
  cudaIpcMemHandle_t handle;
  if (const cudaError_t error = cudaIpcGetMemHandle(&handle, data); error != cudaSuccess) {
    cudaGetLastError();  // a machine that exports nothing computes all the same
    return absl::FailedPreconditionError(FromCuda(error, "cudaIpcGetMemHandle").message());
  }
  return ExportedMemory{
      .data = {owner, data}, .bytes = bytes, .ipc_handle = {handle.reserved, sizeof(handle.reserved)}};
}

absl::StatusOr<OwnedStream> OwnedStream::Create() {
  cudaStream_t handle = nullptr;
  if (const auto error = cudaStreamCreateWithFlags(&handle, cudaStreamNonBlocking); error != cudaSuccess) {
    return FromCuda(error, "stream");
  }
  OwnedStream stream;
  stream.handle_ = OwnedHandle<Destroy>(handle);
  return stream;
}

void OwnedStream::Destroy(void* handle) { cudaStreamDestroy(static_cast<cudaStream_t>(handle)); }

absl::Status WaitFor(void* stream) {
  return FromCuda(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "batch");
}

absl::StatusOr<OwnedEvent> OwnedEvent::Create() {
  cudaEvent_t handle = nullptr;
  if (const auto error = cudaEventCreate(&handle); error != cudaSuccess) return FromCuda(error, "event");
  OwnedEvent event;
  event.handle_ = OwnedHandle<Destroy>(handle);
  return event;
}

void OwnedEvent::Destroy(void* handle) { cudaEventDestroy(static_cast<cudaEvent_t>(handle)); }

absl::Status OwnedEvent::Record(void* stream) const {
  return FromCuda(cudaEventRecord(static_cast<cudaEvent_t>(handle_.get()), static_cast<cudaStream_t>(stream)), "event");
}

absl::Status OwnedEvent::Wait() const {
  return FromCuda(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_.get())), "batch");
}

absl::Status OwnedEvent::Hold(void* stream) const {
  return FromCuda(
      cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), static_cast<cudaEvent_t>(handle_.get()), /*flags=*/0),
      "event");
}

bool OwnedEvent::Ended() const { return cudaEventQuery(static_cast<cudaEvent_t>(handle_.get())) != cudaErrorNotReady; }

absl::StatusOr<double> OwnedEvent::Seconds(const OwnedEvent& from, const OwnedEvent& to) {
  float milliseconds = 0;
  const auto error = cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(from.handle_.get()),
                                          static_cast<cudaEvent_t>(to.handle_.get()));
  if (error != cudaSuccess) return FromCuda(error, "event times");
  return milliseconds * 1e-3;
}

absl::Status Copy(void* to, const void* from, std::int64_t bytes, void* stream) {
  if (bytes == 0) return absl::OkStatus();
  return FromCuda(
      cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, static_cast<cudaStream_t>(stream)),
      "copy");
}

}  // namespace expertd::cuda
