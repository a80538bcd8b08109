// Rows in device memory ahead of their batches.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "kernels/cuda/engine/free_ranges.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/host.h"
#include "kernels/engine.h"

namespace expertd::cuda {

class StagedCopies;

class StagedCopy final : public StagedRows {
 public:
  StagedCopy(StagedCopies& owner, std::shared_ptr<const RowBuffer> rows, std::size_t first, std::int64_t bytes,
             std::byte* device, OwnedEvent copied);
  ~StagedCopy() override;

  // Where the copy of [input, input + bytes) is or will be; null: not all of it was copied.
  const std::byte* Of(const void* input, std::int64_t bytes) const;
  // Makes `stream` wait for the copy's end.
  absl::Status Await(Stream stream) const { return copied_.Hold(stream.handle); }

 private:
  friend class StagedCopies;
  absl::Status Begin(void* stream) const;

  StagedCopies& owner_;
  std::shared_ptr<const RowBuffer> rows_;
  const std::byte* const host_;
  const std::int64_t bytes_;
  std::byte* const device_;
  OwnedEvent copied_;
};

// One allocation, taken up front and handed out in ranges. Copies run one after another, on a stream of their own: so a
// range can be given again at once, whatever is still on its way there. Thread-safe; outlives its copies.
class StagedCopies {
 public:
  // ResourceExhausted: the device does not have `bytes`.
  static absl::StatusOr<std::unique_ptr<StagedCopies>> Create(std::int64_t bytes);
  // Waits for what is on its way.
  ~StagedCopies();

  // Of page-locked memory. The calling thread's current device is the one that this was made on. ResourceExhausted: no
  // range is free that is long enough.
  absl::StatusOr<StagedRowsPtr> Copy(std::shared_ptr<const RowBuffer> rows, std::size_t first, std::int64_t bytes);

  // Lets go of rows whose copy was dropped on its way and has ended since.
  void DropEnded();

  std::int64_t bytes_held() const;

 private:
  friend class StagedCopy;
  struct Dropped {
    OwnedEvent copied;
    std::shared_ptr<const RowBuffer> rows;
  };
  explicit StagedCopies(Memory memory) : memory_(std::move(memory)), free_(memory_.bytes()) {}
  // The range is free; nobody waits for the copy.
  void GiveBack(const std::byte* device, std::int64_t bytes, Dropped dropped);
  absl::StatusOr<OwnedEvent> TakeEvent();

  const Memory memory_;
  OwnedStream stream_;

  mutable Mutex mutex_;
  FreeRanges free_ ABSL_GUARDED_BY(mutex_);
  std::int64_t bytes_held_ ABSL_GUARDED_BY(mutex_) = 0;
  std::deque<Dropped> dropped_ ABSL_GUARDED_BY(mutex_);  // in the order of their copies, or nearly so
  std::vector<OwnedEvent> events_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd::cuda
