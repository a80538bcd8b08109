// Which of the host's memory the device reads and writes where it lies.
#pragma once

#include <cstddef>
#include <functional>
#include <map>

#include "kernels/base/mutex.h"

namespace expertd::cuda {

// Ranges that the engine has page-locked and mapped for its device: its row buffers, and regions that it was shown.
// Thread-safe.
class PinnedRanges {
 public:
  void Add(const std::byte* data, std::size_t bytes) {
    MutexLock lock(mutex_);
    ranges_[data] = bytes;
  }
  void Remove(const std::byte* data) {
    MutexLock lock(mutex_);
    ranges_.erase(data);
  }
  // Whether all of [data, data + bytes) lies in one range.
  bool Contains(const void* data, std::size_t bytes) const {
    const auto* const begin = static_cast<const std::byte*>(data);
    MutexLock lock(mutex_);
    auto after = ranges_.upper_bound(begin);
    if (after == ranges_.begin()) return false;
    const auto& [first, size] = *--after;
    return bytes <= size && static_cast<std::size_t>(begin - first) <= size - bytes;
  }

 private:
  mutable Mutex mutex_;
  std::map<const std::byte*, std::size_t, std::less<>> ranges_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd::cuda
