#include "kernels/cpu/huge_buffer.h"

#include <sys/mman.h>

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace expertd::cpu {

absl::StatusOr<HugeBuffer> HugeBuffer::Allocate(std::size_t bytes) {
  constexpr std::size_t kHugePage = std::size_t{2} << 20;
  HugeBuffer buffer;
  if (bytes == 0) return buffer;
  const std::size_t map_size = bytes + kHugePage;
  void* map = mmap(nullptr, map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (bytes > map_size || map == MAP_FAILED) {
    return absl::ResourceExhaustedError(absl::StrCat("cpu: the system has no ", bytes, " bytes of address space"));
  }
  buffer.map_ = map;
  buffer.map_size_ = map_size;
  const std::size_t misaligned = reinterpret_cast<std::uintptr_t>(map) % kHugePage;
  buffer.data_ = static_cast<std::byte*>(map) + (misaligned == 0 ? 0 : kHugePage - misaligned);
  buffer.size_ = bytes;
  // Advice: small buffers keep small pages, and a system without huge pages works all the same.
  if (bytes >= kHugePage) (void)madvise(map, map_size, MADV_HUGEPAGE);
  return buffer;
}

HugeBuffer::~HugeBuffer() {
  if (map_ != nullptr) munmap(map_, map_size_);
}

}  // namespace expertd::cpu
