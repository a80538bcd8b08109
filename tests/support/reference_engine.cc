#include "tests/support/reference_engine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_format.h"
#include "kernels/base/mutex.h"
#include "kernels/reference/layer.h"

namespace expertd::testing {
namespace {

// A deep copy of another source, in f32.
class CopiedLayer final : public LayerSource {
 public:
  explicit CopiedLayer(const LayerSource& source) : spec_(source.spec()) {
    const RouterWeights router = source.router();
    router_.weight = Copy(router.weight);
    router_.bias = Copy(router.bias);
    router_.correction_bias = Copy(router.correction_bias);
    for (std::int64_t e = 0; e < spec_.held_experts; ++e) {
      experts_.push_back(Copy(source.expert(spec_.first_expert + e)));
      source.Release(spec_.first_expert + e);
    }
    if (spec_.shared_intermediate_size > 0) shared_ = Copy(source.shared());
    if (spec_.shared_gated) shared_gate_ = Copy(source.shared_gate());
  }

  const LayerSpec& spec() const override { return spec_; }
  RouterWeights router() const override { return router_; }
  ExpertWeights expert(std::int64_t expert) const override { return experts_[expert - spec_.first_expert]; }
  ExpertWeights shared() const override { return shared_; }
  VectorView shared_gate() const override { return shared_gate_; }
  void Release(std::int64_t) const override {}
  absl::StatusOr<std::string> Fingerprint() const override { return absl::UnimplementedError("a copy has none"); }

  std::int64_t bytes() const { return bytes_; }

 private:
  float* Allocate(std::int64_t count) {
    bytes_ += count * static_cast<std::int64_t>(sizeof(float));
    return storage_.emplace_back(static_cast<std::size_t>(count)).data();
  }
  WeightView Copy(const WeightView& view) {
    float* const copy = Allocate(view.out * view.in);
    for (std::int64_t o = 0; o < view.out; ++o) {
      for (std::int64_t i = 0; i < view.in; ++i) copy[o * view.in + i] = static_cast<float>(view.At(o, i));
    }
    return {.data = copy, .dtype = DType::kF32, .out = view.out, .in = view.in, .out_stride = view.in};
  }
  VectorView Copy(const VectorView& view) {
    if (view.empty()) return {};
    float* const copy = Allocate(view.size);
    for (std::int64_t i = 0; i < view.size; ++i) copy[i] = static_cast<float>(view.At(i));
    return {.data = copy, .dtype = DType::kF32, .size = view.size};
  }
  ExpertWeights Copy(const ExpertWeights& w) {
    return {Copy(w.gate), Copy(w.up), Copy(w.down), Copy(w.gate_bias), Copy(w.up_bias), Copy(w.down_bias)};
  }

  const LayerSpec spec_;
  RouterWeights router_;
  std::vector<ExpertWeights> experts_;
  ExpertWeights shared_;
  VectorView shared_gate_;
  std::vector<std::vector<float>> storage_;
  std::int64_t bytes_ = 0;
};

class ReferenceLayer final : public Layer {
 public:
  ReferenceLayer(const void* engine, const LayerSource& source, std::string fingerprint)
      : engine_(engine), source_(source), fingerprint_(std::move(fingerprint)) {}

  const LayerSpec& spec() const override { return source_.spec(); }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::int64_t weight_bytes() const override { return source_.bytes(); }
  absl::string_view path() const override { return "reference"; }

  const void* engine() const { return engine_; }
  const LayerSource& source() const { return source_; }

 private:
  const void* const engine_;  // identity only
  const CopiedLayer source_;
  const std::string fingerprint_;
};

// Bytes that may still be handed out. Shared with the buffers, which may outlive the engine.
class Budget {
 public:
  explicit Budget(std::size_t bytes) : left_(bytes) {}
  bool Take(std::size_t bytes) {
    MutexLock lock(mutex_);
    if (bytes > left_) return false;
    left_ -= bytes;
    return true;
  }
  void Return(std::size_t bytes) {
    MutexLock lock(mutex_);
    left_ += bytes;
  }

 private:
  Mutex mutex_;
  std::size_t left_ ABSL_GUARDED_BY(mutex_);
};

double Load(const void* data, DType dtype, std::int64_t i) {
  if (dtype == DType::kF32) return static_cast<const float*>(data)[i];
  return Bf16ToF32(static_cast<const std::uint16_t*>(data)[i]);
}

void Store(void* data, DType dtype, std::int64_t i, double value) {
  if (dtype == DType::kF32) {
    static_cast<float*>(data)[i] = static_cast<float>(value);
  } else {
    static_cast<std::uint16_t*>(data)[i] = F32ToBf16(static_cast<float>(value));
  }
}

void RunSegment(const LayerSource& source, const Segment& segment) {
  const LayerSpec& spec = source.spec();
  const std::int64_t elements = segment.rows * spec.hidden_size, slots = segment.rows * segment.k;
  reference::LayerRows rows;
  rows.n = segment.rows;
  rows.shared_expert = segment.shared_expert;
  rows.k = segment.k;
  for (std::int64_t i = 0; i < elements; ++i) rows.rows.push_back(Load(segment.input, segment.input_dtype, i));
  rows.topk_ids.assign(segment.topk_ids, segment.topk_ids + slots);
  rows.topk_weights.assign(segment.topk_weights, segment.topk_weights + slots);
  const reference::LayerResult result = reference::RunLayer(source, rows);
  for (std::int64_t i = 0; i < elements; ++i) Store(segment.output, segment.output_dtype, i, result.output[i]);
  if (segment.k > 0) return;
  if (segment.routed_ids != nullptr) {
    std::copy(result.topk_ids.begin(), result.topk_ids.end(), segment.routed_ids);
  }
  if (segment.routed_weights != nullptr) {
    std::copy(result.topk_weights.begin(), result.topk_weights.end(), segment.routed_weights);
  }
}

class ReferenceEngine final : public Engine {
 public:
  explicit ReferenceEngine(const ReferenceEngineOptions& options)
      : budget_(std::make_shared<Budget>(options.row_buffer_bytes)) {
    info_.device = "reference";
    info_.description = "double loops";
    info_.numerics_id = "reference-1";
    info_.max_batch_rows = options.max_batch_rows;
    info_.max_k = kMaxExpertsPerToken;
  }

  const EngineInfo& info() const override { return info_; }

  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override {
    if (absl::Status status = source.spec().Validate(); !status.ok()) return status;
    absl::StatusOr<std::string> fingerprint = source.Fingerprint();
    if (!fingerprint.ok()) return fingerprint.status();
    return std::make_shared<ReferenceLayer>(this, source, *std::move(fingerprint));
  }

  absl::StatusOr<RowBuffer> AcquireRows(std::size_t bytes) override {
    const std::size_t capacity = (bytes + 63) / 64 * 64;
    if (!budget_->Take(capacity)) {
      return absl::ResourceExhaustedError(absl::StrFormat("row buffers: %d bytes are more than is left", bytes));
    }
    auto* const data = static_cast<std::byte*>(std::aligned_alloc(64, capacity));
    return RowBuffer(data, bytes, capacity, [budget = budget_](std::byte* freed, std::size_t size) {
      std::free(freed);
      budget->Return(size);
    });
  }

  absl::Status Run(const Layer& layer, absl::Span<const Segment> segments, StageTimes* times) override {
    const auto* const mine = dynamic_cast<const ReferenceLayer*>(&layer);
    if (mine == nullptr || mine->engine() != this) {
      return absl::FailedPreconditionError(absl::StrFormat("layer: %s is not this engine's", layer.spec().Name()));
    }
    const auto start = std::chrono::steady_clock::now();
    for (const Segment& segment : segments) {
      if (segment.rows > 0) RunSegment(mine->source(), segment);
    }
    // One loop does everything: reported as the stage that it mostly is.
    if (times != nullptr) {
      *times = {.gemm = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count()};
    }
    return absl::OkStatus();
  }

 private:
  EngineInfo info_;
  const std::shared_ptr<Budget> budget_;
};

}  // namespace

std::unique_ptr<Engine> MakeReferenceEngine(const ReferenceEngineOptions& options) {
  return std::make_unique<ReferenceEngine>(options);
}

}  // namespace expertd::testing
