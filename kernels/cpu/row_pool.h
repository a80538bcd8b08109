// Pooled, bounded memory for rows on their way through the server.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "kernels/engine.h"

namespace expertd::cpu {

// Where a pool's memory comes from; 64-byte aligned, null when there is none. Called under the pool's lock.
struct RowMemory {
  std::function<std::byte*(std::size_t bytes)> allocate;
  std::function<void(std::byte* data)> free;
};

// Hands out 64-byte aligned buffers and keeps them for reuse, by size class (four to an octave, so a buffer is at most
// a quarter larger than asked for). Thread-safe; buffers may outlive the pool and be dropped in any thread.
class RowPool {
 public:
  // All buffers together, used and kept, hold at most `budget_bytes`.
  explicit RowPool(std::int64_t budget_bytes);
  RowPool(std::int64_t budget_bytes, RowMemory memory);

  // Does not block. InvalidArgument: no bytes. ResourceExhausted: the budget is in use.
  absl::StatusOr<RowBuffer> Acquire(std::size_t bytes);

  // The size class of a request: what a buffer for it takes from the budget.
  static std::size_t CapacityFor(std::size_t bytes);

 private:
  class State;
  std::shared_ptr<State> state_;
};

}  // namespace expertd::cpu
