// CUDA resources with owners. Memory that is freed after the process's CUDA context has gone is gone with it; nothing
// here throws or aborts.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/engine.h"

namespace expertd::cuda {

// Makes `device` the calling thread's current device. Internal when it is lost.
absl::Status UseDevice(int device);

enum class MemoryKind : std::uint8_t { kDevice, kPinned };

// Owns memory of the current device, or page-locked memory of the host that all devices reach. Move-only.
class Memory {
 public:
  // ResourceExhausted naming `what` and bytes. Zero bytes own nothing.
  static absl::StatusOr<Memory> Allocate(MemoryKind kind, std::int64_t bytes, absl::string_view what);

  Memory() = default;
  Memory(Memory&& other) noexcept { *this = std::move(other); }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(kind_, other.kind_);
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }
  ~Memory();

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  MemoryKind kind_ = MemoryKind::kDevice;
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0;
};

// `bytes` of zeroed memory of `device`, allocated for this alone, and its handle for other processes. Waits for the
// zeros. Freed on `device`, whatever the freeing thread's current device is; that waits for all work on it.
// ResourceExhausted naming bytes; FailedPrecondition: this machine does not export memory.
absl::StatusOr<ExportedMemory> Export(int device, std::size_t bytes);

// Owns what CUDA gives out as a pointer. Move-only.
template <void (*kDestroy)(void*)>
class OwnedHandle {
 public:
  OwnedHandle() = default;
  explicit OwnedHandle(void* handle) : handle_(handle) {}
  OwnedHandle(OwnedHandle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  OwnedHandle& operator=(OwnedHandle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~OwnedHandle() {
    if (handle_ != nullptr) kDestroy(handle_);
  }
  void* get() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

// A stream that does not synchronise with the default stream.
class OwnedStream {
 public:
  static absl::StatusOr<OwnedStream> Create();
  void* get() const { return handle_.get(); }

 private:
  static void Destroy(void* handle);
  OwnedHandle<Destroy> handle_;  // cudaStream_t
};

// Waits for all that was enqueued on a stream.
absl::Status WaitFor(void* stream);

// An event with a time.
class OwnedEvent {
 public:
  static absl::StatusOr<OwnedEvent> Create();

  absl::Status Record(void* stream) const;
  absl::Status Wait() const;
  // Makes `stream` wait for it.
  absl::Status Hold(void* stream) const;
  // Whether what it was recorded behind has ended, or never will because the device is lost.
  bool Ended() const;
  // Of two events that have been waited for.
  static absl::StatusOr<double> Seconds(const OwnedEvent& from, const OwnedEvent& to);

 private:
  static void Destroy(void* handle);
  OwnedHandle<Destroy> handle_;  // cudaEvent_t
};

// Between any two places, host or device; from pageable memory it may wait for the stream.
absl::Status Copy(void* to, const void* from, std::int64_t bytes, void* stream);

}  // namespace expertd::cuda
