// Which parts of one allocation are free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>

namespace expertd::cuda {

// Ranges of [0, bytes), in whole multiples of 256; the first that fits is taken. Not thread-safe.
class FreeRanges {
 public:
  explicit FreeRanges(std::int64_t bytes) {
    if (bytes >= kMultiple) free_[0] = bytes / kMultiple * kMultiple;
  }

  // Where `bytes` (> 0) lie from now on; nothing: no free range is that long.
  std::optional<std::int64_t> Take(std::int64_t bytes) {
    const std::int64_t size = SizeOf(bytes);
    const auto found =
        std::find_if(free_.begin(), free_.end(), [&](const auto& range) { return range.second >= size; });
    if (found == free_.end()) return std::nullopt;
    const auto [at, length] = *found;
    free_.erase(found);
    if (length > size) free_[at + size] = length - size;
    return at;
  }

  // What Take gave for as many bytes.
  void Give(std::int64_t at, std::int64_t bytes) {
    std::int64_t length = SizeOf(bytes);
    const auto after = free_.lower_bound(at);
    if (after != free_.begin()) {
      const auto before = std::prev(after);
      if (before->first + before->second == at) {
        at = before->first;
        length += before->second;
      }
    }
    if (after != free_.end() && at + length == after->first) {
      length += after->second;
      free_.erase(after);
    }
    free_[at] = length;
  }

 private:
  static constexpr std::int64_t kMultiple = 256;
  static std::int64_t SizeOf(std::int64_t bytes) { return (bytes + kMultiple - 1) / kMultiple * kMultiple; }

  std::map<std::int64_t, std::int64_t> free_;  // bytes by place; no two touch
};

}  // namespace expertd::cuda
