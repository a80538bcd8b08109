#include "kernels/cpu/cpu_layer.h"

#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cpu/worker_pool.h"

namespace expertd::cpu {
namespace {

constexpr std::int64_t kLine = 64;

absl::Status CheckShape(const char* what, const WeightView& view, std::int64_t out, std::int64_t in) {
  if (view.data != nullptr && view.out == out && view.in == in) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: [%d, %d]%s, must be [%d, %d]", what, view.out, view.in,
                                                    view.empty() ? " without data" : "", out, in));
}

absl::Status CheckBias(const char* what, const VectorView& view, std::int64_t size, bool wanted) {
  if (view.empty() ? !wanted : view.size == size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: %d elements, must be %d", what, view.size, size));
}

absl::Status CheckExpert(const ExpertWeights& w, std::int64_t d, std::int64_t f, bool bias) {
  for (const absl::Status& status :
       {CheckShape("gate", w.gate, f, d), CheckShape("up", w.up, f, d), CheckShape("down", w.down, d, f),
        CheckBias("gate bias", w.gate_bias, f, bias), CheckBias("up bias", w.up_bias, f, bias),
        CheckBias("down bias", w.down_bias, d, bias)}) {
    if (!status.ok()) return status;
  }
  if (w.gate.dtype == w.up.dtype) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("gate is ", DTypeName(w.gate.dtype), ", but up ", DTypeName(w.up.dtype)));
}

WeightView AsMatrix(const VectorView& vector) {
  return {.data = vector.data, .dtype = vector.dtype, .out = 1, .in = vector.size, .in_stride = vector.stride};
}

}  // namespace

class LayerLoader {
 public:
  LayerLoader(const LayerSource& source, CpuLayer& layer, int threads)
      : source_(source), spec_(layer.spec_), layer_(layer), pool_(threads) {}

  absl::Status Load() {
    if (auto status = spec_.Validate(); !status.ok()) return status;
    if (auto status = Plan(); !status.ok()) return status;
    absl::StatusOr<HugeBuffer> memory = HugeBuffer::Allocate(planned_bytes_);
    if (!memory.ok()) return memory.status();
    layer_.weights_ = *std::move(memory);
    PlaceAll();

    absl::StatusOr<std::string> fingerprint = source_.Fingerprint();
    if (!fingerprint.ok()) return fingerprint.status();
    layer_.fingerprint_ = *std::move(fingerprint);
    for (std::int64_t e = 0; e < spec_.held_experts; ++e) source_.Release(spec_.first_expert + e);
    return PackAll();
  }

 private:
  bool has_shared() const { return spec_.shared_intermediate_size > 0; }

  // Formats and sizes of every matrix; experts are like the first one.
  absl::Status Plan() {
    const RouterWeights router = source_.router();
    for (const absl::Status& status :
         {CheckShape("router", router.weight, spec_.num_experts, spec_.hidden_size),
          CheckBias("router bias", router.bias, spec_.num_experts, spec_.routing.router_bias),
          CheckBias("correction bias", router.correction_bias, spec_.num_experts, spec_.routing.correction_bias)}) {
      if (!status.ok()) return status;
    }
    if (auto status = PlanMatrix("router", router.weight, kPanelOuts, layer_.router_); !status.ok()) return status;
    layer_.experts_.resize(spec_.held_experts + (has_shared() ? 1 : 0));
    if (spec_.held_experts > 0) {
      PackedExpert first;
      const ExpertWeights weights = source_.expert(spec_.first_expert);
      if (auto status = PlanExpert(weights, spec_.intermediate_size, spec_.expert_bias, first); !status.ok()) {
        return status;
      }
      for (std::int64_t e = 0; e < spec_.held_experts; ++e) layer_.experts_[e] = first;
    }
    if (has_shared()) {
      const absl::Status status =
          PlanExpert(source_.shared(), spec_.shared_intermediate_size, false, layer_.experts_.back());
      if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat("shared expert: ", status.message()));
      if (spec_.shared_gated) {
        const WeightView gate = AsMatrix(source_.shared_gate());
        if (auto bad = CheckShape("shared gate", gate, 1, spec_.hidden_size); !bad.ok()) return bad;
        if (auto bad = PlanMatrix("shared gate", gate, kPanelOuts, layer_.shared_gate_); !bad.ok()) return bad;
      }
    }
    return MeasureAll();
  }

  absl::Status PlanExpert(const ExpertWeights& weights, std::int64_t f, bool bias, PackedExpert& expert) {
    if (auto status = CheckExpert(weights, spec_.hidden_size, f, bias); !status.ok()) return status;
    if (auto status = PlanMatrix("gate", weights.gate, kPanelOuts / 2, expert.gate_up); !status.ok()) return status;
    return PlanMatrix("down", weights.down, kPanelOuts, expert.down);
  }

  absl::Status PlanMatrix(const char* what, const WeightView& view, std::int64_t outs_per_panel, PackedMatrix& matrix) {
    const absl::StatusOr<PackedFormat> format = PackedFormatOf(view.dtype, what);
    if (!format.ok()) return format.status();
    matrix.format = *format;
    matrix.panels = RoundUp(view.out, outs_per_panel) / outs_per_panel;
    matrix.k = view.in;
    return absl::OkStatus();
  }

  absl::Status MeasureAll() {
    PlaceAll();
    planned_bytes_ = static_cast<std::size_t>(used_);
    return absl::OkStatus();
  }

  // Gives every matrix its place in the layer's memory; a dry run as long as there is none.
  void PlaceAll() {
    used_ = 0;
    Place(layer_.router_, true);
    if (spec_.shared_gated && has_shared()) Place(layer_.shared_gate_, false);
    for (std::int64_t e = 0; e < static_cast<std::int64_t>(layer_.experts_.size()); ++e) {
      const bool bias = spec_.expert_bias && e < spec_.held_experts;
      Place(layer_.experts_[e].gate_up, bias);
      Place(layer_.experts_[e].down, bias);
    }
  }
  void Place(PackedMatrix& matrix, bool bias) {
    matrix.data = Take(matrix.bytes());
    if (bias) matrix.bias = reinterpret_cast<const float*>(Take(matrix.panels * kPanelOuts * 4));
  }
  std::byte* Take(std::int64_t bytes) {
    std::byte* base = layer_.weights_.data();
    std::byte* at = base == nullptr ? nullptr : base + used_;
    used_ += RoundUp(bytes, kLine);
    return at;
  }

  absl::Status PackAll() {
    const RouterWeights router = source_.router();
    PackPlain(router.weight, router.bias, layer_.router_);
    for (std::int64_t e = 0; !router.correction_bias.empty() && e < spec_.num_experts; ++e) {
      layer_.correction_bias_.push_back(static_cast<float>(router.correction_bias.At(e)));
    }
    for (std::int64_t e = 0; e < spec_.held_experts; ++e) {
      if (auto status = PackHeld(e); !status.ok()) {
        return absl::InvalidArgumentError(absl::StrCat("expert ", spec_.first_expert + e, ": ", status.message()));
      }
    }
    if (has_shared()) {
      const ExpertWeights shared = source_.shared();
      PackGateUp(shared, layer_.experts_.back().gate_up);
      PackPlain(shared.down, shared.down_bias, layer_.experts_.back().down);
      if (spec_.shared_gated) PackPlain(AsMatrix(source_.shared_gate()), {}, layer_.shared_gate_);
    }
    return absl::OkStatus();
  }

  absl::Status PackHeld(std::int64_t e) {
    const std::int64_t id = spec_.first_expert + e;
    const PackedExpert& expert = layer_.experts_[e];
    ExpertWeights weights = source_.expert(id);
    if (auto status = CheckExpert(weights, spec_.hidden_size, spec_.intermediate_size, spec_.expert_bias);
        !status.ok()) {
      return status;
    }
    const absl::StatusOr<PackedFormat> gate = PackedFormatOf(weights.gate.dtype, "gate");
    const absl::StatusOr<PackedFormat> down = PackedFormatOf(weights.down.dtype, "down");
    if (!gate.ok() || !down.ok() || *gate != expert.gate_up.format || *down != expert.down.format) {
      return absl::InvalidArgumentError("its dtypes differ from the first expert's");
    }
    PackGateUp(weights, expert.gate_up);
    // Of a few large experts, one alone would be more than a tenth of the layer: let go of two thirds of it early.
    constexpr std::int64_t kFewExperts = 16;
    if (spec_.held_experts < kFewExperts) {
      source_.Release(id);
      weights = source_.expert(id);
    }
    PackPlain(weights.down, weights.down_bias, expert.down);
    source_.Release(id);
    return absl::OkStatus();
  }

  void PackGateUp(const ExpertWeights& w, const PackedMatrix& matrix) {
    PackMatrix(matrix, [&](std::int64_t p) { return GateUpPanel(w.gate, w.gate_bias, w.up, w.up_bias, p); });
  }
  void PackPlain(const WeightView& weights, const VectorView& bias, const PackedMatrix& matrix) {
    PackMatrix(matrix, [&](std::int64_t p) { return PlainPanel(weights, bias, p); });
  }
  void PackMatrix(const PackedMatrix& matrix, absl::FunctionRef<PanelSource(std::int64_t)> panel) {
    pool_.ParallelFor(matrix.panels, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t p = begin; p < end; ++p) {
        const PanelSource from = panel(p);
        PackPanel(from, matrix, p);
        if (matrix.bias != nullptr) PackBias(from, const_cast<float*>(matrix.bias) + p * kPanelOuts);
      }
    });
  }

  const LayerSource& source_;
  const LayerSpec& spec_;
  CpuLayer& layer_;
  WorkerPool pool_;
  std::int64_t used_ = 0;
  std::size_t planned_bytes_ = 0;
};

absl::StatusOr<std::shared_ptr<const CpuLayer>> CpuLayer::Load(const LayerSource& source, Isa isa, int threads,
                                                               const void* owner) {
  std::shared_ptr<CpuLayer> layer(new CpuLayer(source.spec()));
  if (absl::Status status = LayerLoader(source, *layer, threads).Load(); !status.ok()) return status;
  layer->owner_ = owner;
  layer->path_ = absl::StrCat("cpu-", IsaName(isa));
  layer->native_bf16_ = isa >= Isa::kAvx512Bf16;
  for (const PackedExpert& expert : layer->experts_) {
    for (const PackedMatrix* matrix : {&expert.gate_up, &expert.down}) {
      layer->native_bf16_ &= kFormatLayout[static_cast<int>(matrix->format)].exact_in_bf16;
    }
  }
  return std::shared_ptr<const CpuLayer>(std::move(layer));
}

}  // namespace expertd::cpu
