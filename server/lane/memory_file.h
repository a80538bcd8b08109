// Memory that the server allocates and another process maps: sealed, so that neither side can shrink or grow it, and
// the server's accesses can never fault.
#pragma once

#include <cstddef>
#include <utility>

#include "absl/status/statusor.h"
#include "server/lane/descriptor.h"

namespace expertd {

// A memfd, mapped for reading and writing. Move-only; unmapped when destroyed (peers keep what they have mapped).
class MemoryFile {
 public:
  // `bytes` > 0, rounded up to whole pages; zeroed, and all of it there: later accesses allocate nothing. Blocks for
  // that. ResourceExhausted: no memory, or no descriptor.
  static absl::StatusOr<MemoryFile> Create(std::size_t bytes);

  // What a file of `bytes` comes to.
  static std::size_t SizeOf(std::size_t bytes);

  MemoryFile(MemoryFile&& other) noexcept;
  MemoryFile& operator=(MemoryFile&&) = delete;
  ~MemoryFile();

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }
  int descriptor() const { return descriptor_.get(); }  // still this object's

 private:
  MemoryFile(Descriptor descriptor, std::byte* data, std::size_t size)
      : descriptor_(std::move(descriptor)), data_(data), size_(size) {}

  Descriptor descriptor_;
  std::byte* data_;
  std::size_t size_;
};

}  // namespace expertd
