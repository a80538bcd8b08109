#include "server/lane/region.h"

#include <sys/random.h>

#include <cerrno>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

std::uint64_t RandomHandle() {
  std::uint64_t handle = 0;
  while (handle == 0) FillRandom(&handle, sizeof(handle));  // 0 is a field that was not set
  return handle;
}

}  // namespace

void FillRandom(void* out, std::size_t bytes) {
  auto* next = static_cast<std::byte*>(out);
  while (bytes > 0) {
    const ssize_t got = getrandom(next, bytes, 0);
    if (got < 0 && errno != EINTR) std::abort();  // a kernel without random numbers can keep no secrets
    if (got <= 0) continue;
    next += got;
    bytes -= static_cast<std::size_t>(got);
  }
}

absl::Status RegionBudget::Take(std::uint64_t bytes) {
  MutexLock lock(mutex_);
  if (bytes > limit_ - in_use_) {
    return absl::ResourceExhaustedError(absl::StrCat("region: ", bytes, " bytes do not fit beside the ", in_use_,
                                                     " of all sessions (limit ", flag_, ", ", limit_, " bytes)"));
  }
  in_use_ += bytes;
  return absl::OkStatus();
}

void RegionBudget::Return(std::uint64_t bytes) {
  MutexLock lock(mutex_);
  in_use_ -= bytes;
}

std::uint64_t RegionBudget::in_use() const {
  MutexLock lock(mutex_);
  return in_use_;
}

absl::StatusOr<std::shared_ptr<Region>> Region::Create(std::shared_ptr<RegionBudget> budget, std::size_t bytes,
                                                       std::size_t rows_offset) {
  const std::size_t size = MemoryFile::SizeOf(bytes);
  if (absl::Status status = budget->Take(size); !status.ok()) return status;
  absl::StatusOr<MemoryFile> file = MemoryFile::Create(size);
  if (!file.ok()) {
    budget->Return(size);
    return file.status();
  }
  return std::shared_ptr<Region>(new Region(std::move(budget), *std::move(file), rows_offset));
}

absl::StatusOr<std::shared_ptr<Region>> Region::CreateOnDevice(std::shared_ptr<RegionBudget> budget, Engine& engine,
                                                               std::size_t bytes) {
  const std::size_t size = (bytes + kExportedMultiple - 1) / kExportedMultiple * kExportedMultiple;
  if (absl::Status status = budget->Take(size); !status.ok()) return status;
  absl::StatusOr<ExportedMemory> memory = engine.ExportMemory(size);
  if (!memory.ok()) {
    budget->Return(size);
    return memory.status();
  }
  return std::shared_ptr<Region>(new Region(std::move(budget), *std::move(memory), 0));
}

Region::Region(std::shared_ptr<RegionBudget> budget, Memory memory, std::size_t rows_offset)
    : budget_(std::move(budget)),
      memory_(std::move(memory)),
      data_(on_device() ? std::get<ExportedMemory>(memory_).data.get() : std::get<MemoryFile>(memory_).data()),
      size_(on_device() ? std::get<ExportedMemory>(memory_).bytes : std::get<MemoryFile>(memory_).size()),
      rows_offset_(rows_offset),
      handle_(RandomHandle()) {}

Region::~Region() { budget_->Return(size_); }

absl::Status Region::CheckRange(const char* field, std::uint64_t offset, std::uint64_t bytes) const {
  if (offset % kRowAlignment != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("region.", field, ": ", offset, " is not a multiple of ", kRowAlignment));
  }
  if (offset < rows_offset_) {
    return absl::InvalidArgumentError(
        absl::StrCat("region.", field, ": ", offset, " lies before the region's rows_offset ", rows_offset_));
  }
  if (offset > size() || bytes > size() - offset) {
    return absl::InvalidArgumentError(absl::StrCat("region.", field, ": ", bytes, " bytes from ", offset,
                                                   " end beyond the region (", size(), " bytes)"));
  }
  return absl::OkStatus();
}

absl::StatusOr<Region::Loan> Region::Lend(const RegionRows& rows, std::uint64_t input_bytes,
                                          std::uint64_t output_bytes) {
  if (absl::Status s = CheckRange("input_offset", rows.input_offset, input_bytes); !s.ok()) return s;
  if (absl::Status s = CheckRange("output_offset", rows.output_offset, output_bytes); !s.ok()) return s;
  if (rows.input_offset < rows.output_offset + output_bytes && rows.output_offset < rows.input_offset + input_bytes) {
    return absl::InvalidArgumentError(absl::StrCat("region.output_offset: ", output_bytes, " bytes from ",
                                                   rows.output_offset, " overlap the input (", input_bytes,
                                                   " bytes from ", rows.input_offset, ")"));
  }
  return Loan{BufferAt(rows.input_offset, input_bytes), BufferAt(rows.output_offset, output_bytes)};
}

RowBuffer Region::BufferAt(std::uint64_t offset, std::uint64_t bytes) {
  return RowBuffer(data() + offset, bytes, bytes, [region = shared_from_this()](std::byte*, std::size_t) {});
}

void RegionTable::Add(std::shared_ptr<Region> region) {
  MutexLock lock(mutex_);
  regions_.emplace(region->handle(), std::move(region));
}

void RegionTable::Remove(std::uint64_t handle) {
  std::shared_ptr<Region> last;  // freed outside the lock
  MutexLock lock(mutex_);
  const auto found = regions_.find(handle);
  if (found == regions_.end()) return;
  last = std::move(found->second);
  regions_.erase(found);
}

absl::StatusOr<std::shared_ptr<Region>> RegionTable::Find(std::uint64_t handle) const {
  MutexLock lock(mutex_);
  const auto found = regions_.find(handle);
  if (found != regions_.end()) return found->second;
  return absl::NotFoundError(absl::StrCat("region.handle: ", handle, " names no region of an open session"));
}

}  // namespace expertd
