// Tensors in POSIX shared memory that callers bring: the "system shared memory" extension.
//
// Objects are read and written with pread and pwrite and never mapped: their owner may truncate them at any time, and a
// touch beyond the end of a mapping would end this process (SIGBUS) where pread answers short.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/base/mutex.h"

namespace expertd::kserve {

struct RegionInfo {
  std::string name;  // unique among its owner's regions
  std::string key;   // of the object, as shm_open takes it
  std::uint64_t offset = 0;
  std::uint64_t byte_size = 0;
};

// A tensor's place inside a region. Keeps the object open, so that a region may be unregistered while it is in use.
class SharedTensor {
 public:
  // Blocks for a copy's time. FailedPrecondition: the object has become shorter than its region.
  absl::Status Read(absl::Span<char> out) const;                 // out.size() == size
  absl::Status Write(absl::Span<const std::byte> tensor) const;  // tensor.size() <= size

 private:
  friend class SharedMemory;
  class Object;
  absl::Status Truncated(std::int64_t end) const;

  std::shared_ptr<const Object> object_;
  std::string region_;
  std::int64_t offset_ = 0;  // in the object
  std::int64_t size_ = 0;
};

// The regions of all callers. An owner (a tenant) sees and uses its own regions only. Thread-safe.
class SharedMemory {
 public:
  // InvalidArgument: no such object, not one that this process may read and write, or shorter than the region.
  // AlreadyExists: the owner has a region of this name. FailedPrecondition: kMaxRegions are registered.
  absl::Status Register(absl::string_view owner, const RegionInfo& region);
  // An empty name: all of the owner's. A name that is not registered is no error.
  void Unregister(absl::string_view owner, absl::string_view name);
  // By name; an empty name: all of the owner's. NotFound.
  absl::StatusOr<std::vector<RegionInfo>> List(absl::string_view owner, absl::string_view name) const;

  // `size` bytes from `offset` of a region. InvalidArgument: there is no such region, or it is smaller.
  absl::StatusOr<SharedTensor> Find(absl::string_view owner, absl::string_view name, std::uint64_t offset,
                                    std::uint64_t size) const;

  static constexpr std::size_t kMaxRegions = 1024;

 private:
  struct Region {
    RegionInfo info;
    std::shared_ptr<const SharedTensor::Object> object;
  };
  using Key = std::pair<std::string, std::string>;  // owner, name

  mutable Mutex mutex_;
  std::map<Key, Region> regions_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd::kserve
