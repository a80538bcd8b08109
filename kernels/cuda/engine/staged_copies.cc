#include "kernels/cuda/engine/staged_copies.h"

#include <optional>

#include "absl/strings/str_cat.h"

namespace expertd::cuda {

StagedCopy::StagedCopy(StagedCopies& owner, std::shared_ptr<const RowBuffer> rows, std::size_t first,
                       std::int64_t bytes, std::byte* device, OwnedEvent copied)
    : owner_(owner),
      rows_(std::move(rows)),
      host_(rows_->data() + first),
      bytes_(bytes),
      device_(device),
      copied_(std::move(copied)) {}

StagedCopy::~StagedCopy() { owner_.GiveBack(device_, bytes_, {std::move(copied_), std::move(rows_)}); }

const std::byte* StagedCopy::Of(const void* input, std::int64_t bytes) const {
  const auto from =
      static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(input) - reinterpret_cast<std::uintptr_t>(host_));
  return from >= 0 && from + bytes <= bytes_ ? device_ + from : nullptr;
}

absl::Status StagedCopy::Begin(void* stream) const {
  absl::Status status = Copy(device_, host_, bytes_, stream);
  if (status.ok()) status = copied_.Record(stream);
  if (!status.ok()) (void)WaitFor(stream);  // nothing else says when it has ended
  return status;
}

absl::StatusOr<std::unique_ptr<StagedCopies>> StagedCopies::Create(std::int64_t bytes) {
  absl::StatusOr<Memory> memory = Memory::Allocate(MemoryKind::kDevice, bytes, "rows that wait for their batch");
  if (!memory.ok()) return memory.status();
  std::unique_ptr<StagedCopies> copies(new StagedCopies(*std::move(memory)));
  absl::StatusOr<OwnedStream> stream = OwnedStream::Create();
  if (!stream.ok()) return stream.status();
  copies->stream_ = *std::move(stream);
  return copies;
}

StagedCopies::~StagedCopies() { (void)WaitFor(stream_.get()); }

absl::StatusOr<StagedRowsPtr> StagedCopies::Copy(std::shared_ptr<const RowBuffer> rows, std::size_t first,
                                                 std::int64_t bytes) {
  DropEnded();
  absl::StatusOr<OwnedEvent> event = TakeEvent();
  if (!event.ok()) return event.status();
  std::byte* device = nullptr;
  {
    MutexLock lock(mutex_);
    const std::optional<std::int64_t> at = free_.Take(bytes);
    if (!at.has_value()) {
      return absl::ResourceExhaustedError(
          absl::StrCat("staging: ", bytes, " bytes do not fit beside ", bytes_held_, " in use, of ", memory_.bytes()));
    }
    bytes_held_ += bytes;
    device = memory_.data() + *at;
  }
  const auto copy = std::make_shared<StagedCopy>(*this, std::move(rows), first, bytes, device, *std::move(event));
  if (absl::Status status = copy->Begin(stream_.get()); !status.ok()) return status;
  return copy;
}

absl::StatusOr<OwnedEvent> StagedCopies::TakeEvent() {
  {
    MutexLock lock(mutex_);
    if (!events_.empty()) {
      OwnedEvent event = std::move(events_.back());
      events_.pop_back();
      return event;
    }
  }
  return OwnedEvent::Create();
}

void StagedCopies::GiveBack(const std::byte* device, std::int64_t bytes, Dropped dropped) {
  const bool ended = dropped.copied.Ended();
  MutexLock lock(mutex_);
  free_.Give(device - memory_.data(), bytes);
  bytes_held_ -= bytes;
  if (ended) {
    events_.push_back(std::move(dropped.copied));
  } else {
    dropped_.push_back(std::move(dropped));
  }
}

void StagedCopies::DropEnded() {
  std::vector<Dropped> ended;  // rows go back to their pool outside the lock
  MutexLock lock(mutex_);
  while (!dropped_.empty() && dropped_.front().copied.Ended()) {
    ended.push_back(std::move(dropped_.front()));
    dropped_.pop_front();
    events_.push_back(std::move(ended.back().copied));
  }
}

std::int64_t StagedCopies::bytes_held() const {
  MutexLock lock(mutex_);
  return bytes_held_;
}

}  // namespace expertd::cuda
