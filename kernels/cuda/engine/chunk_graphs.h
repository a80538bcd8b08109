// CUDA graphs of small chunks: what a chunk enqueues between its copies, replayed by one call.
#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <tuple>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/functional/function_ref.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/host.h"
#include "kernels/tensor.h"

namespace expertd::cuda {

// All that decides what a chunk enqueues: chunks of equal shapes enqueue the same launches.
struct ChunkShape {
  std::uint64_t layer = 0;  // CudaLayer::id()
  DType dtype = DType::kBF16;
  std::int64_t n = 0, routed_rows = 0, shared_rows = 0, kc = 0;

  auto Key() const { return std::tuple(layer, dtype, n, routed_rows, shared_rows, kc); }
  friend bool operator==(const ChunkShape& a, const ChunkShape& b) { return a.Key() == b.Key(); }
  template <typename H>
  friend H AbslHashValue(H hash, const ChunkShape& shape) {
    return H::combine(std::move(hash), shape.Key());
  }
};

// A graph that can be launched.
class OwnedGraph {
 public:
  // What `enqueue` puts on `stream`, which it must not wait for. The stream captures in this thread alone.
  static absl::StatusOr<OwnedGraph> Capture(Stream stream, absl::FunctionRef<absl::Status()> enqueue);

  absl::Status Launch(Stream stream) const;
  explicit operator bool() const { return handle_.get() != nullptr; }

 private:
  static void Destroy(void* handle);
  OwnedHandle<Destroy> handle_;  // cudaGraphExec_t
};

// The graphs of one runner, whose workspace they work in; the least recently used is dropped for a new one. Layers that
// are gone leave graphs behind that are never asked for again. Not thread-safe, but for
// count().
class ChunkGraphs {
 public:
  // Does on `stream` what `enqueue` does. A shape's first chunk is enqueued as it is (which also loads its kernels),
  // its second is captured, and from then on its graph is launched.
  absl::Status Run(const ChunkShape& shape, Stream stream, absl::FunctionRef<absl::Status()> enqueue);

  // Graphs held now.
  std::int64_t count() const { return count_.load(std::memory_order_relaxed); }

 private:
  static constexpr std::size_t kMost = 512;
  struct Entry {
    ChunkShape shape;
    OwnedGraph graph;  // empty after the first chunk
  };

  std::atomic<std::int64_t> count_ = 0;  // of entries with a graph
  std::list<Entry> entries_;             // the last used first
  absl::flat_hash_map<ChunkShape, std::list<Entry>::iterator> by_shape_;
};

}  // namespace expertd::cuda
