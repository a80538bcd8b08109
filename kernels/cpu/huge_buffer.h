// Memory straight from the system: zero, 2 MiB aligned, in huge pages where the system has them, resident once touched.
#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"

namespace expertd::cpu {

class HugeBuffer {
 public:
  HugeBuffer() = default;
  // ResourceExhausted when the system has no such address range.
  static absl::StatusOr<HugeBuffer> Allocate(std::size_t bytes);
  HugeBuffer(HugeBuffer&& other) noexcept { *this = std::move(other); }
  HugeBuffer& operator=(HugeBuffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(map_, other.map_);
    std::swap(map_size_, other.map_size_);
    return *this;
  }
  ~HugeBuffer();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  void* map_ = nullptr;
  std::size_t map_size_ = 0;
};

}  // namespace expertd::cpu
