#include "kernels/cuda/engine/chunk_graphs.h"

#include <cuda_runtime_api.h>

namespace expertd::cuda {

absl::StatusOr<OwnedGraph> OwnedGraph::Capture(Stream stream, absl::FunctionRef<absl::Status()> enqueue) {
  const auto handle = static_cast<cudaStream_t>(stream.handle);
  if (const auto error = cudaStreamBeginCapture(handle, cudaStreamCaptureModeThreadLocal); error != cudaSuccess) {
    return FromCuda(error, "graph");
  }
  const absl::Status enqueued = enqueue();
  cudaGraph_t graph = nullptr;
  const cudaError_t ended = cudaStreamEndCapture(handle, &graph);  // whatever happened, capturing ends
  if (!enqueued.ok()) {
    if (graph != nullptr) cudaGraphDestroy(graph);
    return enqueued;
  }
  if (ended != cudaSuccess) return FromCuda(ended, "graph");
  cudaGraphExec_t made = nullptr;
  const cudaError_t error = cudaGraphInstantiate(&made, graph, 0);
  cudaGraphDestroy(graph);
  if (error != cudaSuccess) return FromCuda(error, "graph");
  OwnedGraph owned;
  owned.handle_ = OwnedHandle<Destroy>(made);
  return owned;
}

void OwnedGraph::Destroy(void* handle) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle)); }

absl::Status OwnedGraph::Launch(Stream stream) const {
  return FromCuda(
      cudaGraphLaunch(static_cast<cudaGraphExec_t>(handle_.get()), static_cast<cudaStream_t>(stream.handle)), "graph");
}

absl::Status ChunkGraphs::Run(const ChunkShape& shape, Stream stream, absl::FunctionRef<absl::Status()> enqueue) {
  const auto found = by_shape_.find(shape);
  if (found == by_shape_.end()) {
    if (entries_.size() == kMost) {
      by_shape_.erase(entries_.back().shape);
      if (entries_.back().graph) --count_;
      entries_.pop_back();
    }
    entries_.push_front({.shape = shape});
    by_shape_.emplace(shape, entries_.begin());
    return enqueue();
  }
  Entry& entry = *found->second;
  entries_.splice(entries_.begin(), entries_, found->second);
  if (!entry.graph) {
    absl::StatusOr<OwnedGraph> made = OwnedGraph::Capture(stream, enqueue);
    if (!made.ok()) return made.status();
    entry.graph = *std::move(made);
    ++count_;
  }
  return entry.graph.Launch(stream);
}

}  // namespace expertd::cuda
