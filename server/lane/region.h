// Regions: memory of sessions, found by handle, lent to requests.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <variant>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/engine.h"
#include "server/codec/forward_codec.h"
#include "server/lane/memory_file.h"

namespace expertd {

inline constexpr std::uint64_t kRowAlignment = 64;

// What all sessions may have of one kind of memory. Thread-safe.
class RegionBudget : public std::enable_shared_from_this<RegionBudget> {
 public:
  // `flag` sets the limit, bytes; a literal.
  RegionBudget(const char* flag, std::uint64_t limit) : flag_(flag), limit_(limit) {}

  // ResourceExhausted naming the flag.
  absl::Status Take(std::uint64_t bytes);
  void Return(std::uint64_t bytes);
  std::uint64_t in_use() const;

 private:
  const char* const flag_;
  const std::uint64_t limit_;
  mutable Mutex mutex_;
  std::uint64_t in_use_ ABSL_GUARDED_BY(mutex_) = 0;
};

// A memory file, or exported memory of the device. Immutable but for its bytes, which the peer may change at any time.
// Lives as long as its session or a request that uses it, whichever is longer; its memory counts against the budget
// until then.
class Region : public std::enable_shared_from_this<Region> {
 public:
  // Rows may lie from `rows_offset`. Otherwise see MemoryFile::Create and RegionBudget::Take.
  static absl::StatusOr<std::shared_ptr<Region>> Create(std::shared_ptr<RegionBudget> budget, std::size_t bytes,
                                                        std::size_t rows_offset);
  // On the engine's device, `bytes` rounded up to kExportedMultiple; rows may lie anywhere. Otherwise see
  // Engine::ExportMemory and RegionBudget::Take.
  static absl::StatusOr<std::shared_ptr<Region>> CreateOnDevice(std::shared_ptr<RegionBudget> budget, Engine& engine,
                                                                std::size_t bytes);
  ~Region();

  // Of a memory file, before others see the region: batches of the engine use rows where they lie, if it can do that.
  void PinFor(Engine& engine) { pinned_ = engine.PinHostMemory(data(), size()); }

  std::uint64_t handle() const { return handle_; }
  std::byte* data() const { return data_; }  // on_device: an address there
  std::size_t size() const { return size_; }
  std::size_t rows_offset() const { return rows_offset_; }
  bool on_device() const { return std::holds_alternative<ExportedMemory>(memory_); }
  // Of a memory file, or of memory on the device: one of the two.
  int descriptor() const { return std::get<MemoryFile>(memory_).descriptor(); }
  const std::string& ipc_handle() const { return std::get<ExportedMemory>(memory_).ipc_handle; }

  struct Loan {
    RowBuffer input, output;
  };
  // The two ranges as row buffers, which keep the region alive. InvalidArgument naming the offset and the limit that it
  // breaks: alignment, the region's ends, or that output and input overlap. Both sizes > 0.
  absl::StatusOr<Loan> Lend(const RegionRows& rows, std::uint64_t input_bytes, std::uint64_t output_bytes);

 private:
  using Memory = std::variant<MemoryFile, ExportedMemory>;
  Region(std::shared_ptr<RegionBudget> budget, Memory memory, std::size_t rows_offset);

  absl::Status CheckRange(const char* field, std::uint64_t offset, std::uint64_t bytes) const;
  RowBuffer BufferAt(std::uint64_t offset, std::uint64_t bytes);

  const std::shared_ptr<RegionBudget> budget_;
  const Memory memory_;
  std::byte* const data_;
  const std::size_t size_;
  const std::size_t rows_offset_;
  const std::uint64_t handle_;    // random: who does not know it cannot use the region
  std::shared_ptr<void> pinned_;  // null: not
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
