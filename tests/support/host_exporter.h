// "Device memory" for tests without a device: the host's, and the handle by which another process would find it is its
// address.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "kernels/engine.h"

namespace expertd::testing {

// Thread-safe. What it exported may outlive it.
class HostExporter {
 public:
  ExportedMemory Export(std::size_t bytes) {
    if (bytes == 0 || bytes % kExportedMultiple != 0) std::abort();  // the engine's contract
    auto* const data = static_cast<std::byte*>(std::calloc(bytes, 1));
    ExportedMemory memory = {.bytes = bytes, .ipc_handle = std::string(64, '\0')};
    std::memcpy(memory.ipc_handle.data(), &data, sizeof(data));
    *bytes_ += bytes;
    memory.data = {data, [total = bytes_, bytes](std::byte* freed) {
                     *total -= bytes;
                     std::free(freed);
                   }};
    return memory;
  }

  // Exported and not freed.
  std::size_t bytes() const { return *bytes_; }

  // Where a handle leads; null: it is none.
  static std::byte* Open(const std::string& ipc_handle) {
    std::byte* data = nullptr;
    if (ipc_handle.size() == 64) std::memcpy(&data, ipc_handle.data(), sizeof(data));
    return data;
  }

 private:
  const std::shared_ptr<std::atomic<std::size_t>> bytes_ = std::make_shared<std::atomic<std::size_t>>(0);
};

}  // namespace expertd::testing
