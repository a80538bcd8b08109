#include "server/kserve/shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"

namespace expertd::kserve {
namespace {

absl::Status CannotUse(const RegionInfo& region, absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat("region '", region.name, "': shared memory object '", region.key, "' ", why));
}

// Whole or nothing: how far it came when it ends early. `transfer` is pread or pwrite.
template <class Byte, class Transfer>
std::int64_t TransferAll(Transfer transfer, int fd, Byte* data, std::size_t size, std::int64_t offset) {
  std::size_t done = 0;
  while (done < size) {
    const ssize_t n = transfer(fd, data + done, size - done, offset + static_cast<std::int64_t>(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    done += static_cast<std::size_t>(n);
  }
  return static_cast<std::int64_t>(done);
}

}  // namespace

// An open shared memory object.
class SharedTensor::Object {
 public:
  explicit Object(int fd) : fd_(fd) {}
  ~Object() { close(fd_); }
  Object(const Object&) = delete;
  Object& operator=(const Object&) = delete;

  int fd() const { return fd_; }
  // Nothing when it is no regular file.
  std::optional<std::int64_t> Size() const {
    struct stat info = {};
    if (fstat(fd_, &info) != 0 || !S_ISREG(info.st_mode)) return std::nullopt;
    return info.st_size;
  }

 private:
  const int fd_;
};

absl::Status SharedTensor::Truncated(std::int64_t end) const {
  return absl::FailedPreconditionError(absl::StrCat("shared_memory_region: '", region_, "' was truncated: ", end,
                                                    " of ", size_, " bytes of the tensor are there"));
}

absl::Status SharedTensor::Read(absl::Span<char> out) const {
  const std::int64_t done = TransferAll(pread, object_->fd(), out.data(), out.size(), offset_);
  return done == static_cast<std::int64_t>(out.size()) ? absl::OkStatus() : Truncated(done);
}

absl::Status SharedTensor::Write(absl::Span<const std::byte> tensor) const {
  // pwrite would make an object that was truncated longer again.
  const std::int64_t there = object_->Size().value_or(0) - offset_;
  if (there < static_cast<std::int64_t>(tensor.size())) return Truncated(std::max<std::int64_t>(0, there));
  const std::int64_t done = TransferAll(pwrite, object_->fd(), tensor.data(), tensor.size(), offset_);
  return done == static_cast<std::int64_t>(tensor.size()) ? absl::OkStatus() : Truncated(done);
}

absl::Status SharedMemory::Register(absl::string_view owner, const RegionInfo& region) {
  if (region.name.empty()) return absl::InvalidArgumentError("name: empty, a region needs one");
  if (region.byte_size == 0)
    return absl::InvalidArgumentError(absl::StrCat("region '", region.name, "': byte_size is 0"));
  const int fd = region.key.empty() ? -1 : shm_open(region.key.c_str(), O_RDWR, 0);
  if (fd < 0)
    return CannotUse(region, absl::StrCat("cannot be opened: ", strerror(region.key.empty() ? EINVAL : errno)));
  auto object = std::make_shared<const SharedTensor::Object>(fd);
  const std::optional<std::int64_t> size = object->Size();
  if (!size) return CannotUse(region, "is no regular object");
  const auto there = static_cast<std::uint64_t>(*size);
  if (region.offset > there || region.byte_size > there - region.offset) {
    return CannotUse(
        region, absl::StrCat("has ", there, " bytes, not offset ", region.offset, " + byte_size ", region.byte_size));
  }
  MutexLock lock(mutex_);
  const Key key(owner, region.name);
  if (regions_.count(key) != 0) {
    return absl::AlreadyExistsError(absl::StrCat("region '", region.name, "' is registered, unregister it first"));
  }
  if (regions_.size() >= kMaxRegions) {
    return absl::FailedPreconditionError(
        absl::StrCat("region '", region.name, "': ", regions_.size(), " regions are registered, that is the limit"));
  }
  regions_.emplace(key, Region{region, std::move(object)});
  return absl::OkStatus();
}

void SharedMemory::Unregister(absl::string_view owner, absl::string_view name) {
  MutexLock lock(mutex_);
  for (auto region = regions_.begin(); region != regions_.end();) {
    const bool meant = region->first.first == owner && (name.empty() || region->first.second == name);
    region = meant ? regions_.erase(region) : std::next(region);
  }
}

absl::StatusOr<std::vector<RegionInfo>> SharedMemory::List(absl::string_view owner, absl::string_view name) const {
  MutexLock lock(mutex_);
  std::vector<RegionInfo> found;
  for (const auto& [key, region] : regions_) {
    if (key.first == owner && (name.empty() || key.second == name)) found.push_back(region.info);
  }
  if (found.empty() && !name.empty()) return absl::NotFoundError(absl::StrCat("region '", name, "' is not registered"));
  return found;
}

absl::StatusOr<SharedTensor> SharedMemory::Find(absl::string_view owner, absl::string_view name, std::uint64_t offset,
                                                std::uint64_t size) const {
  MutexLock lock(mutex_);
  const auto found = regions_.find(Key(owner, name));
  if (found == regions_.end()) {
    return absl::InvalidArgumentError(absl::StrCat("shared_memory_region: '", name, "' is not registered"));
  }
  const Region& region = found->second;
  if (offset > region.info.byte_size || size > region.info.byte_size - offset) {
    return absl::InvalidArgumentError(absl::StrCat("shared_memory_region: '", name, "' has ", region.info.byte_size,
                                                   " bytes, not shared_memory_offset ", offset,
                                                   " + shared_memory_byte_size ", size));
  }
  SharedTensor tensor;
  tensor.object_ = region.object;
  tensor.region_ = region.info.name;
  tensor.offset_ = static_cast<std::int64_t>(region.info.offset + offset);
  tensor.size_ = static_cast<std::int64_t>(size);
  return tensor;
}

}  // namespace expertd::kserve
