// A region in a server's device memory, mapped by this process as a caller would map it. Includes no CUDA: in a build
// without it nothing can be opened.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/shared_region.h"

namespace expertd::testing {

class MappedRegion {
 public:
  // Makes the region's GPU the thread's current device. Unavailable: there is none with its UUID; Internal with CUDA's
  // words.
  static absl::StatusOr<std::unique_ptr<MappedRegion>> Open(const client::DeviceRegion& region);
  ~MappedRegion();  // closes the mapping
  MappedRegion(const MappedRegion&) = delete;
  MappedRegion& operator=(const MappedRegion&) = delete;

  // Copies between the host and `offset`; done when they return. The range is trusted. Internal with CUDA's words.
  absl::Status Write(std::uint64_t offset, const void* from, std::size_t bytes);
  absl::Status Read(std::uint64_t offset, void* to, std::size_t bytes) const;
  // Every byte of the region.
  absl::Status Fill(unsigned char value);

 private:
  explicit MappedRegion(void* data, std::size_t size) : data_(static_cast<std::byte*>(data)), size_(size) {}

  // Nobody reads them in a build without CUDA.
  [[maybe_unused]] std::byte* const data_;
  [[maybe_unused]] const std::size_t size_;
};

}  // namespace expertd::testing
