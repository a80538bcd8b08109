// The same-host fast lane from the caller's side: a session, the memory that the server shares with it, and requests
// that name rows there instead of carrying them.
#pragma once

#include <grpcpp/channel.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "client/cpp/ring_client.h"
#include "expertd/v1/expertd.pb.h"

namespace expertd::client {

// Memory of a session, mapped. Rows are written at an offset, and answers appear at another; see RegionRows in the
// proto. Not before its requests are answered may it be destroyed, or the memory be used for something else.
class SharedRegion {
 public:
  ~SharedRegion();
  SharedRegion(const SharedRegion&) = delete;
  SharedRegion& operator=(const SharedRegion&) = delete;

  std::uint64_t handle() const { return handle_; }
  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::size_t rows_offset() const { return rows_offset_; }  // where rows may begin
  // The ring, when one was asked for; for one thread at a time.
  RingClient* ring() { return ring_ ? &*ring_ : nullptr; }

 private:
  friend class SharedSession;
  SharedRegion() = default;

  std::uint64_t handle_ = 0;
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t rows_offset_ = 0;
  int doorbell_ = -1;
  std::optional<RingClient> ring_;
};

// Memory of the server's GPU that this process may map too; this library does not, it knows no CUDA. With
//   cudaSetDevice(the device whose UUID is device_uuid);
//   cudaIpcMemHandle_t handle; std::memcpy(&handle, region.ipc_handle.data(), sizeof(handle));
//   cudaIpcOpenMemHandle(&data, handle, cudaIpcMemLazyEnablePeerAccess);
// rows are written from data on, at the offsets that requests name. Synchronise the stream that writes them before the
// request is sent; outputs are there for every stream when it is answered. Close the mapping (cudaIpcCloseMemHandle)
// before the session.
struct DeviceRegion {
  std::uint64_t handle = 0;
  std::size_t size = 0;
  std::string ipc_handle;   // 64 bytes: a cudaIpcMemHandle_t
  std::string device_uuid;  // "GPU-..."
};

struct RegionOptions {
  std::uint64_t bytes = 0;            // for rows
  std::uint32_t ring_slots = 0;       // 0: no ring; otherwise how many requests it may have in flight
  std::uint32_t slot_bytes = 4096;    // the longest request and answer, 8 bytes less
  std::chrono::microseconds spin{0};  // see RingClient
};

// A Session call. Its end, also by Close or destruction, takes the regions from the server's requests; their memory
// here stays mapped until they are destroyed. Not thread-safe.
class SharedSession {
 public:
  // Unimplemented: the server has no fast lane, which it says when the first region is asked for.
  static std::unique_ptr<SharedSession> Open(const std::shared_ptr<grpc::Channel>& channel);
  ~SharedSession();

  // Blocks. The server's refusal; Unavailable: the session has ended, or its socket cannot be reached (another host, or
  // another user).
  absl::StatusOr<std::unique_ptr<SharedRegion>> CreateRegion(const RegionOptions& options);

  // The same in the server's device memory; `bytes` are rounded up to 2 MiB. It lives as long as the session. Also
  // FailedPrecondition: the server offers none; Unimplemented: it computes on a CPU.
  absl::StatusOr<DeviceRegion> CreateDeviceRegion(std::uint64_t bytes);

  // Ends the session and returns its status. Idempotent.
  absl::Status Close();

 private:
  class Call;
  explicit SharedSession(std::unique_ptr<Call> call);
  std::unique_ptr<Call> call_;
};

// Fetches the descriptors that a token stands for: at least one, at most two, all the caller's to close. Unavailable:
// the socket cannot be reached; PermissionDenied: the token was refused, with the server's words.
absl::StatusOr<std::vector<int>> FetchDescriptors(const std::string& socket_path, absl::string_view token);

}  // namespace expertd::client
