#include "server/null_engine.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "kernels/base/host_memory.h"
#include "kernels/base/mutex.h"

namespace expertd {
namespace {

constexpr std::size_t kAlignment = 64;

// Blocks of power-of-two sizes, kept for the next request. Lives as long as its last buffer.
class BlockPool : public std::enable_shared_from_this<BlockPool> {
 public:
  explicit BlockPool(std::int64_t budget) : budget_(budget) {}
  ~BlockPool() {
    for (auto& [size, blocks] : free_) {
      for (std::byte* block : blocks) std::free(block);
    }
  }

  absl::StatusOr<RowBuffer> Acquire(std::size_t bytes) {
    const std::size_t capacity = std::bit_ceil(std::max(bytes, kAlignment));
    std::byte* block = nullptr;
    {
      MutexLock lock(mutex_);
      if (used_ + static_cast<std::int64_t>(capacity) > budget_) {
        return absl::ResourceExhaustedError(
            absl::StrCat("row buffers: ", bytes, " bytes wanted, ", used_, " of ", budget_, " are in use"));
      }
      used_ += static_cast<std::int64_t>(capacity);
      std::vector<std::byte*>& blocks = free_[capacity];
      if (!blocks.empty()) {
        block = blocks.back();
        blocks.pop_back();
      }
    }
    if (block == nullptr) block = static_cast<std::byte*>(std::aligned_alloc(kAlignment, capacity));
    if (block == nullptr) {
      MutexLock lock(mutex_);
      used_ -= static_cast<std::int64_t>(capacity);
      return absl::ResourceExhaustedError(absl::StrCat("row buffers: no memory for ", bytes, " bytes"));
    }
    return RowBuffer(block, bytes, capacity,
                     [pool = shared_from_this()](std::byte* data, std::size_t size) { pool->Release(data, size); });
  }

 private:
  void Release(std::byte* block, std::size_t capacity) {
    MutexLock lock(mutex_);
    used_ -= static_cast<std::int64_t>(capacity);
    free_[capacity].push_back(block);
  }

  const std::int64_t budget_;
  Mutex mutex_;
  std::int64_t used_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::size_t, std::vector<std::byte*>> free_ ABSL_GUARDED_BY(mutex_);
};

class NullLayer : public Layer {
 public:
  NullLayer(LayerSpec spec, std::string fingerprint) : spec_(std::move(spec)), fingerprint_(std::move(fingerprint)) {}
  const LayerSpec& spec() const override { return spec_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::int64_t weight_bytes() const override { return 0; }
  absl::string_view path() const override { return "null"; }

 private:
  const LayerSpec spec_;
  const std::string fingerprint_;
};

void CopyRows(const Segment& segment, std::int64_t hidden_size) {
  const std::int64_t elements = segment.rows * hidden_size;
  if (segment.input_dtype == segment.output_dtype) {
    std::memcpy(segment.output, segment.input, static_cast<std::size_t>(BytesOf(segment.input_dtype, elements)));
  } else if (segment.input_dtype == DType::kBF16) {
    const auto* in = static_cast<const std::uint16_t*>(segment.input);
    std::transform(in, in + elements, static_cast<float*>(segment.output), Bf16ToF32);
  } else {
    const auto* in = static_cast<const float*>(segment.input);
    std::transform(in, in + elements, static_cast<std::uint16_t*>(segment.output), F32ToBf16);
  }
}

class NullEngine : public Engine {
 public:
  explicit NullEngine(const NullEngineOptions& options)
      : pool_(std::make_shared<BlockPool>(options.row_buffer_bytes)),
        per_batch_(options.per_batch),
        per_row_(options.per_row) {
    info_.device = "null";
    info_.description = "no arithmetic: rows are copied";
    info_.numerics_id = "null";
    info_.concurrency = 1;
    info_.max_batch_rows = options.max_batch_rows;
    info_.max_k = kMaxExpertsPerToken;
  }

  const EngineInfo& info() const override { return info_; }

  DeviceMemory memory() const override { return HostMemory(); }

  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override {
    if (absl::Status status = source.spec().Validate(); !status.ok()) return status;
    absl::StatusOr<std::string> fingerprint = source.Fingerprint();
    if (!fingerprint.ok()) return fingerprint.status();
    return std::make_shared<NullLayer>(source.spec(), *std::move(fingerprint));
  }

  absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) override { return pool_->Acquire(bytes); }

  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) override {
    const auto start = std::chrono::steady_clock::now();
    const LayerSpec& spec = layer.spec();
    std::int64_t rows = 0;
    for (const Segment& segment : segments) {
      if (segment.rows == 0) continue;
      rows += segment.rows;
      CopyRows(segment, spec.hidden_size);
      const std::int64_t slots = segment.rows * spec.experts_per_token;
      if (segment.routed_ids != nullptr) std::fill_n(segment.routed_ids, slots, -1);
      if (segment.routed_weights != nullptr) std::fill_n(segment.routed_weights, slots, 0.0f);
    }
    if (rows > 0) std::this_thread::sleep_until(start + per_batch_ + rows * per_row_);
    if (times != nullptr) {
      *times = {.stage_out = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
    }
    return absl::OkStatus();
  }

 private:
  const std::shared_ptr<BlockPool> pool_;
  const std::chrono::nanoseconds per_batch_, per_row_;
  EngineInfo info_;
};

}  // namespace

std::unique_ptr<Engine> MakeNullEngine(const NullEngineOptions& options) {
  return std::make_unique<NullEngine>(options);
}

}  // namespace expertd
