// The one interface that the server sees of everything that computes. One engine per device.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/layer_source.h"
#include "kernels/layer_spec.h"
#include "kernels/tensor.h"

namespace expertd {

// A loaded layer. Immutable while it serves; shared by the engine, the server and every batch that uses it, and freed
// with the last of them.
class Layer {
 public:
  virtual ~Layer() = default;
  virtual const LayerSpec& spec() const = 0;
  virtual const std::string& fingerprint() const = 0;
  virtual std::int64_t weight_bytes() const = 0;  // resident on the device
  virtual absl::string_view path()
      const = 0;  // "cpu-avx512bf16", "fused", "sorted", ...: fixed when the layer was loaded
};
using LayerPtr = std::shared_ptr<const Layer>;

// Memory that a request's rows are decoded into and answered from (pinned on CUDA, plain on CPU), 64-byte aligned.
// Move-only; goes back to its pool when destroyed, from any thread and without blocking. A pool outlives its buffers.
class RowBuffer {
 public:
  using Release = std::function<void(std::byte* data, std::size_t capacity)>;

  RowBuffer() = default;
  RowBuffer(std::byte* data, std::size_t size, std::size_t capacity, Release release)
      : data_(data), size_(size), capacity_(capacity), release_(std::move(release)) {}
  RowBuffer(RowBuffer&& other) noexcept { *this = std::move(other); }
  RowBuffer& operator=(RowBuffer&& other) noexcept {
    if (this != &other) {
      Reset();
      data_ = std::exchange(other.data_, nullptr);
      size_ = std::exchange(other.size_, 0);
      capacity_ = std::exchange(other.capacity_, 0);
      release_ = std::exchange(other.release_, nullptr);
    }
    return *this;
  }
  ~RowBuffer() { Reset(); }

  std::byte* data() const { return data_; }
  std::size_t size() const { return size_; }          // as asked for
  std::size_t capacity() const { return capacity_; }  // at least size
  explicit operator bool() const { return data_ != nullptr; }

  void Reset() {
    if (release_) std::exchange(release_, nullptr)(data_, capacity_);
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_ = 0;
  std::size_t capacity_ = 0;
  Release release_;
};

// Makes a buffer one of two owners of its memory; the other is what this returns.
inline std::shared_ptr<const RowBuffer> Share(RowBuffer& buffer) {
  const auto shared = std::make_shared<RowBuffer>(std::move(buffer));
  buffer = RowBuffer(shared->data(), shared->size(), shared->capacity(), [shared](std::byte*, std::size_t) {});
  return shared;
}

// A copy of rows in the device's memory, made ahead of their batch (Engine::StageRows). Its place is given back when it
// is destroyed, from any thread and without blocking. Not to outlive its engine.
class StagedRows {
 public:
  virtual ~StagedRows() = default;
};
using StagedRowsPtr = std::shared_ptr<const StagedRows>;

// How rows came to the device.
struct StagingTotals {
  std::int64_t rows_on_arrival = 0;  // whose batch found them there
  std::int64_t rows_with_batch = 0;  // which their batch fetched from the host's memory
  std::int64_t bytes = 0;            // of copies that are held now
};

// Exported memory comes in whole multiples of so many bytes: the device then keeps nothing else in the same allocation,
// and whoever maps it sees nothing else.
inline constexpr std::size_t kExportedMultiple = 2 << 20;

// Memory of the engine's device that other processes on this host can map too.
struct ExportedMemory {
  // An address on the device; the host must not read or write there. Freed with the last reference, from any thread;
  // that may wait for batches in progress.
  std::shared_ptr<std::byte> data;
  std::size_t bytes = 0;
  std::string ipc_handle;  // the 64 bytes that cudaIpcOpenMemHandle takes
};

// The rows of one request (or a range of them) inside a batch. A batch is a list of these, never a concatenated copy.
struct Segment {
  std::int64_t rows = 0;
  const void* input = nullptr;        // [rows, D] of input_dtype
  void* output = nullptr;             // [rows, D] of output_dtype, written in full; must not overlap any input
  DType input_dtype = DType::kBF16;   // kBF16 or kF32
  DType output_dtype = DType::kBF16;  // kBF16 or kF32
  bool shared_expert = true;          // add the layer's shared expert, where it has one
  // Input and output lie in ExportedMemory of this engine, so the host must not touch them. Others may write there
  // meanwhile: that spoils this segment's rows and nothing else.
  bool on_device = false;
  // Null, or a copy of rows that may hold the input's: the engine then waits for it and uses it instead.
  const StagedRows* staged = nullptr;

  // Pre-routed when k > 0: ids and weights are [rows, k]. -1 is an unused slot, ids outside the layer's held experts
  // are skipped, weights are applied as given, slots are summed in the order given. k = 0: the layer's router chooses.
  std::int64_t k = 0;
  const std::int32_t* topk_ids = nullptr;
  const float* topk_weights = nullptr;

  // Server-routed only; null or [rows, K]: where to put the ids and weights that the router chose.
  std::int32_t* routed_ids = nullptr;
  float* routed_weights = nullptr;
};

// Seconds that a batch spent in each stage; they add up to the call's duration, less dispatch.
struct StageTimes {
  double stage_in = 0;
  double route = 0;
  double gemm = 0;
  double combine = 0;
  double stage_out = 0;
};

struct EngineInfo {
  std::string device;       // "cpu", "cuda:0"
  std::string description;  // "AMD EPYC, AVX-512 BF16, 2 threads"
  std::string numerics_id;  // equal ids and equal fingerprints: equal bits
  int concurrency = 1;      // how many Run calls may be in progress at once
  std::int64_t max_batch_rows = 0;
  std::int64_t max_k = 0;             // largest Segment::k
  std::string device_uuid;            // "GPU-..." as the driver prints it; empty: the engine exports no memory
  std::int64_t stage_from_bytes = 0;  // rows of so many bytes are worth StageRows; 0: the engine does not stage
};

// Of a device, whoever uses it.
struct DeviceMemory {
  std::int64_t total_bytes = 0;  // 0: the engine cannot tell
  std::int64_t free_bytes = 0;
};

class Engine {
 public:
  virtual ~Engine() = default;

  virtual const EngineInfo& info() const = 0;

  // As it is now; for scrapes, not for decisions. Neither waits for batches nor delays them.
  virtual DeviceMemory memory() const { return {}; }
  // Recorded batches that are held for replay (CUDA graphs).
  virtual std::int64_t graphs() const { return 0; }
  virtual StagingTotals staging() const { return {}; }

  // Reads all weights from `source`, packs them for the device and drops the source's pages as it goes. Blocks. Layers
  // may be loaded while others serve. InvalidArgument: the spec is invalid or beyond this engine; ResourceExhausted: it
  // does not fit.
  virtual absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) = 0;

  // A buffer of at least `bytes` (> 0) from the engine's pool. Does not block. ResourceExhausted: the pool's budget is
  // in use.
  virtual absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) = 0;

  // Lets batches use [data, data + bytes) of the host's memory, whole pages, where it lies, as they use that of
  // AcquireRows: until the result is destroyed, from any thread, which may wait for batches in progress. Null: the
  // engine does not, and copies rows that lie there.
  virtual std::shared_ptr<void> PinHostMemory(std::byte* data, std::size_t bytes) { return nullptr; }

  // Begins to copy [first, first + bytes) of `rows`, which came from AcquireRows or lie in PinHostMemory, to the
  // device, and keeps them until that has ended, however soon the copy is dropped. For segments whose input lies there
  // (Segment::staged). Does not wait. ResourceExhausted: no room now; FailedPrecondition: `rows` lie elsewhere;
  // Unimplemented: the engine computes in host memory; Internal: the device is lost. Batches then fetch the rows.
  virtual absl::StatusOr<StagedRowsPtr> StageRows(std::shared_ptr<const RowBuffer> /*rows*/, std::size_t /*first*/,
                                                  std::size_t /*bytes*/) {
    return absl::UnimplementedError("this engine computes in host memory, it has nowhere to stage rows");
  }

  // `bytes` (a multiple of kExportedMultiple, not 0) of zeroed device memory. Blocks. Unimplemented: the engine
  // computes in host memory; ResourceExhausted: the device has no more; FailedPrecondition: the machine does not export
  // memory; Internal: the device is lost.
  virtual absl::StatusOr<ExportedMemory> ExportMemory(std::size_t /*bytes*/) {
    return absl::UnimplementedError("this engine computes in host memory, it has no device memory to export");
  }

  // Computes every segment of one batch for one layer; blocks until the outputs are written. At most info().concurrency
  // calls at a time. A row's bits depend on its values, the layer and its own segment's options only, never on its
  // batch: NaN or Inf in one row stay in that row. Segments are trusted: shapes, dtypes and ids were checked by the
  // caller (ids < E, no repetition in a row). An empty batch and segments of zero rows are fine. A failure fails the
  // whole batch; outputs are then unspecified. FailedPrecondition: `layer` is not this engine's; ResourceExhausted:
  // does not fit now, split it; Internal: the device is lost.
  virtual absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) = 0;
};

}  // namespace expertd
