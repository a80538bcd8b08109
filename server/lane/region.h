// Regions: memory of sessions, found by handle, lent to requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/engine.h"
#include "server/codec/forward_codec.h"
#include "server/lane/memory_file.h"

namespace expertd {

inline constexpr std::uint64_t kRowAlignment = 64;

// A share of the fast lane's memory, given back when destroyed. Thread-safe.
class RegionBudget : public std::enable_shared_from_this<RegionBudget> {
 public:
  explicit RegionBudget(std::uint64_t limit) : limit_(limit) {}

  // ResourceExhausted naming --fast-lane-mib.
  absl::Status Take(std::uint64_t bytes);
  void Return(std::uint64_t bytes);
  std::uint64_t in_use() const;

 private:
  const std::uint64_t limit_;
  mutable Mutex mutex_;
  std::uint64_t in_use_ ABSL_GUARDED_BY(mutex_) = 0;
};

// Immutable but for its bytes, which the peer may change at any time. Lives as long as its session or a request that
// uses it, whichever is longer; its memory counts against the budget until then.
class Region : public std::enable_shared_from_this<Region> {
 public:
  // Rows may lie from `rows_offset`. Otherwise see MemoryFile::Create and RegionBudget::Take.
  static absl::StatusOr<std::shared_ptr<Region>> Create(std::shared_ptr<RegionBudget> budget, std::size_t bytes,
                                                        std::size_t rows_offset);
  ~Region();

  std::uint64_t handle() const { return handle_; }
  std::byte* data() const { return file_.data(); }
  std::size_t size() const { return file_.size(); }
  std::size_t rows_offset() const { return rows_offset_; }
  int descriptor() const { return file_.descriptor(); }

  struct Loan {
    RowBuffer input, output;
  };
  // The two ranges as row buffers, which keep the region alive. InvalidArgument naming the offset and the limit that it
  // breaks: alignment, the region's ends, or that output and input overlap. Both sizes > 0.
  absl::StatusOr<Loan> Lend(const RegionRows& rows, std::uint64_t input_bytes, std::uint64_t output_bytes);

 private:
  Region(std::shared_ptr<RegionBudget> budget, MemoryFile file, std::size_t rows_offset);

  absl::Status CheckRange(const char* field, std::uint64_t offset, std::uint64_t bytes) const;
  RowBuffer BufferAt(std::uint64_t offset, std::uint64_t bytes);

  const std::shared_ptr<RegionBudget> budget_;
  const MemoryFile file_;
  const std::size_t rows_offset_;
  const std::uint64_t handle_;  // random: who does not know it cannot use the region
};

// The regions of all open sessions. Thread-safe.
class RegionTable {
 public:
  void Add(std::shared_ptr<Region> region);
  // Requests that use it keep it until they are answered.
  void Remove(std::uint64_t handle);
  // NotFound naming the handle.
  absl::StatusOr<std::shared_ptr<Region>> Find(std::uint64_t handle) const;

 private:
  mutable Mutex mutex_;
  absl::flat_hash_map<std::uint64_t, std::shared_ptr<Region>> regions_ ABSL_GUARDED_BY(mutex_);
};

// Bytes that nobody can guess.
void FillRandom(void* out, std::size_t bytes);

}  // namespace expertd
