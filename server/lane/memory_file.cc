#include "server/lane/memory_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

absl::Status NoMemory(std::size_t bytes, const char* step) {
  return absl::ResourceExhaustedError(absl::StrCat("region: ", bytes, " bytes: ", step, ": ", std::strerror(errno)));
}

}  // namespace

std::size_t MemoryFile::SizeOf(std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page;
}

absl::StatusOr<MemoryFile> MemoryFile::Create(std::size_t bytes) {
  const std::size_t size = SizeOf(bytes);
  Descriptor file(memfd_create("expertd-region", MFD_CLOEXEC | MFD_ALLOW_SEALING));
  if (!file) return NoMemory(size, "memfd_create");
  if (ftruncate(file.get(), static_cast<off_t>(size)) != 0) return NoMemory(size, "ftruncate");
  // Without this a page would be allocated when it is first touched, perhaps by the server, perhaps in vain.
  if (fallocate(file.get(), 0, 0, static_cast<off_t>(size)) != 0) return NoMemory(size, "fallocate");
  if (fcntl(file.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) return NoMemory(size, "seal");
  void* data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, file.get(), 0);
  if (data == MAP_FAILED) return NoMemory(size, "mmap");
  return MemoryFile(std::move(file), static_cast<std::byte*>(data), size);
}

MemoryFile::MemoryFile(MemoryFile&& other) noexcept
    : descriptor_(std::move(other.descriptor_)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

MemoryFile::~MemoryFile() {
  if (data_ != nullptr) munmap(data_, size_);
}

}  // namespace expertd
