#include "kernels/cpu/row_pool.h"

#include <bit>
#include <map>
#include <new>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"

namespace expertd::cpu {
namespace {

constexpr std::align_val_t kAlignment{64};
constexpr std::size_t kSmallest = 4096;

std::byte* Allocate(std::size_t bytes) {
  return static_cast<std::byte*>(::operator new(bytes, kAlignment, std::nothrow));
}
void Free(std::byte* data) { ::operator delete(data, kAlignment); }

}  // namespace

class RowPool::State {
 public:
  State(std::size_t budget, RowMemory memory) : budget_(budget), memory_(std::move(memory)) {}
  ~State() {
    MutexLock lock(mutex_);
    DropKept(0);
  }

  // Null: over budget.
  std::byte* Take(std::size_t capacity) {
    MutexLock lock(mutex_);
    std::vector<std::byte*>& fitting = kept_[capacity];
    if (!fitting.empty()) {
      std::byte* data = fitting.back();
      fitting.pop_back();
      kept_bytes_ -= capacity;
      used_bytes_ += capacity;
      return data;
    }
    if (capacity > budget_ - used_bytes_) return nullptr;
    DropKept(budget_ - used_bytes_ - capacity);
    std::byte* data = memory_.allocate(capacity);
    if (data != nullptr) used_bytes_ += capacity;
    return data;
  }

  void Return(std::byte* data, std::size_t capacity) {
    MutexLock lock(mutex_);
    used_bytes_ -= capacity;
    kept_bytes_ += capacity;
    kept_[capacity].push_back(data);
  }

  std::size_t used_bytes() const {
    MutexLock lock(mutex_);
    return used_bytes_;
  }

 private:
  // Frees kept buffers, the largest first, until at most `bytes` are kept.
  void DropKept(std::size_t bytes) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    for (auto it = kept_.rbegin(); it != kept_.rend() && kept_bytes_ > bytes; ++it) {
      while (!it->second.empty() && kept_bytes_ > bytes) {
        memory_.free(it->second.back());
        it->second.pop_back();
        kept_bytes_ -= it->first;
      }
    }
  }

  const std::size_t budget_;
  const RowMemory memory_;
  mutable Mutex mutex_;
  std::size_t used_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::size_t kept_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::size_t, std::vector<std::byte*>> kept_ ABSL_GUARDED_BY(mutex_);  // by capacity
};

RowPool::RowPool(std::int64_t budget_bytes) : RowPool(budget_bytes, {Allocate, Free}) {}

RowPool::RowPool(std::int64_t budget_bytes, RowMemory memory)
    : state_(
          std::make_shared<State>(budget_bytes < 0 ? 0 : static_cast<std::size_t>(budget_bytes), std::move(memory))) {}

std::size_t RowPool::CapacityFor(std::size_t bytes) {
  if (bytes <= kSmallest) return kSmallest;
  const std::size_t step = std::bit_floor(bytes - 1) / 4;
  return (bytes + step - 1) / step * step;
}

absl::StatusOr<RowBuffer> RowPool::Acquire(std::size_t bytes) {
  if (bytes == 0) return absl::InvalidArgumentError("row buffer: 0 bytes asked for, must be at least 1");
  if (bytes > std::size_t{1} << 62) return absl::ResourceExhaustedError(absl::StrCat("row buffer: ", bytes, " bytes"));
  const std::size_t capacity = CapacityFor(bytes);
  std::byte* data = state_->Take(capacity);
  if (data == nullptr) {
    return absl::ResourceExhaustedError(
        absl::StrCat("row buffer: ", bytes, " bytes do not fit beside ", state_->used_bytes(), " in use"));
  }
  return RowBuffer(data, bytes, capacity,
                   [state = state_](std::byte* rows, std::size_t size) { state->Return(rows, size); });
}

}  // namespace expertd::cpu
