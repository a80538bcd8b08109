#include "kernels/cuda/engine/cuda_layer.h"

#include <cuda_runtime_api.h>

#include <atomic>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/hopper/fused_config.h"
#include "kernels/cuda/host.h"

namespace expertd::cuda {
namespace {

std::atomic<std::uint64_t> next_id = 1;

absl::Status CheckMatrix(absl::string_view what, const WeightView& view, std::int64_t out, std::int64_t in) {
  if (view.data != nullptr && view.out == out && view.in == in) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: [%d, %d]%s, must be [%d, %d]", what, view.out, view.in,
                                                    view.empty() ? " without data" : "", out, in));
}

absl::Status CheckVector(absl::string_view what, const VectorView& view, std::int64_t size, bool wanted) {
  if (view.empty() ? !wanted : view.size == size) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrFormat("%s: %d elements, must be %d", what, view.size, size));
}

absl::Status First(std::initializer_list<absl::Status> statuses) {
  for (const absl::Status& status : statuses) {
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

}  // namespace

class CudaLayerLoader {
 public:
  CudaLayerLoader(const LayerSource& source, CudaLayer& layer, WeightUpload& upload)
      : source_(source), spec_(layer.spec_), layer_(layer), upload_(upload) {}

  absl::Status Load() {
    if (auto status = spec_.Validate(); !status.ok()) return status;
    if (auto status = Plan(); !status.ok()) return status;
    PlaceAll();  // counts only
    if (auto status = Allocate(used_); !status.ok()) return status;
    PlaceAll();
    absl::StatusOr<std::string> fingerprint = source_.Fingerprint();
    if (!fingerprint.ok()) return fingerprint.status();
    layer_.fingerprint_ = *std::move(fingerprint);
    for (std::int64_t e = 0; e < spec_.held_experts; ++e) source_.Release(spec_.first_expert + e);
    if (auto status = Upload(); !status.ok()) return status;
    return upload_.Finish();
  }

 private:
  bool has_shared() const { return spec_.shared_intermediate_size > 0; }

  // Codes and sizes of every matrix; experts are like the first one.
  absl::Status Plan() {
    const RouterWeights router = source_.router();
    if (auto status = First(
            {CheckMatrix("router", router.weight, spec_.num_experts, spec_.hidden_size),
             CheckVector("router bias", router.bias, spec_.num_experts, spec_.routing.router_bias),
             CheckVector("correction bias", router.correction_bias, spec_.num_experts, spec_.routing.correction_bias)});
        !status.ok()) {
      return status;
    }
    if (spec_.held_experts > 0) {
      const absl::Status status = PlanExperts(source_.expert(spec_.first_expert), spec_.held_experts,
                                              spec_.intermediate_size, spec_.expert_bias, layer_.experts_);
      if (!status.ok()) return status;
    }
    if (!has_shared()) return absl::OkStatus();
    const absl::Status status = PlanExperts(source_.shared(), 1, spec_.shared_intermediate_size, false, layer_.shared_);
    if (!status.ok()) return absl::InvalidArgumentError(absl::StrCat("shared expert: ", status.message()));
    if (!spec_.shared_gated) return absl::OkStatus();
    return CheckVector("shared gate", source_.shared_gate(), spec_.hidden_size, true);
  }

  absl::Status CheckExpert(const ExpertWeights& w, std::int64_t f, bool bias) const {
    const std::int64_t d = spec_.hidden_size;
    return First({CheckMatrix("gate", w.gate, f, d), CheckMatrix("up", w.up, f, d), CheckMatrix("down", w.down, d, f),
                  CheckVector("gate bias", w.gate_bias, f, bias), CheckVector("up bias", w.up_bias, f, bias),
                  CheckVector("down bias", w.down_bias, d, bias)});
  }

  absl::Status PlanExperts(const ExpertWeights& w, std::int64_t count, std::int64_t f, bool bias,
                           DeviceExperts& experts) const {
    if (auto status = CheckExpert(w, f, bias); !status.ok()) return status;
    const absl::StatusOr<WeightCode> gate = CodeOf(w.gate, "gate"), up = CodeOf(w.up, "up"),
                                     down = CodeOf(w.down, "down");
    if (auto status = First({gate.status(), up.status(), down.status()}); !status.ok()) return status;
    if (*gate != *up) return absl::InvalidArgumentError("gate and up differ in dtype");
    const std::int64_t d = spec_.hidden_size;
    experts = {.count = count,
               .d = d,
               .f = f,
               .gate_up = {.code = *gate, .out = 2 * f, .in = d},
               .down = {.code = *down, .out = d, .in = f}};
    const absl::StatusOr<DeviceLimits> device = CurrentDevice();
    if (!device.ok()) return device.status();
    const bool fp8_rows = layer_.path_ == ExpertPath::kFp8Rows;
    experts.fused = (layer_.path_ == ExpertPath::kAuto || fp8_rows) && *gate == *down &&
                    UsesFused(*device, Element::kBF16, *gate, d, f, count);
    if (fp8_rows && (!experts.fused || *gate != WeightCode::kFp8)) {
      return absl::InvalidArgumentError(
          "path fp8-rows: weights must be fp8, hidden and intermediate size multiples of 64");
    }
    if (fp8_rows) experts.gate_up.code = experts.down.code = WeightCode::kFp8Both;
    if (experts.fused) {
      experts.gate_up.packing = Packing::kGateUp;
      experts.down.packing = Packing::kRows;
    }
    return absl::OkStatus();
  }

  // Gives everything its place in the layer's memory, or only counts while there is none.
  void PlaceAll() {
    used_ = 0;
    const std::int64_t e = spec_.num_experts, d = spec_.hidden_size;
    layer_.router_ = Take(e * d * 4);
    layer_.router_bias_ = source_.router().bias.empty() ? nullptr : Take(e * 4);
    layer_.correction_bias_ = source_.router().correction_bias.empty() ? nullptr : Take(e * 4);
    layer_.shared_gate_ = has_shared() && spec_.shared_gated ? Take(d * 4) : nullptr;
    for (DeviceExperts* experts : {&layer_.experts_, &layer_.shared_}) {
      const bool bias = spec_.expert_bias && experts == &layer_.experts_ && experts->count > 0;
      for (DeviceMatrix* matrix : {&experts->gate_up, &experts->down}) {
        matrix->codes = Take(experts->count * matrix->code_bytes());
        matrix->scales = matrix->scale_bytes() == 0 ? nullptr : Take(experts->count * matrix->scale_bytes());
        matrix->bias = bias ? Take(experts->count * matrix->out * 4) : nullptr;
      }
    }
  }
  std::byte* Take(std::int64_t bytes) {
    std::byte* const base = layer_.memory_.data();
    std::byte* const at = base == nullptr ? nullptr : base + used_;
    used_ += CeilDiv(bytes, 256) * 256;
    return at;
  }

  absl::Status Allocate(std::int64_t bytes) {
    std::size_t free = 0, total = 0;
    if (auto error = cudaMemGetInfo(&free, &total); error != cudaSuccess) return FromCuda(error, "device memory");
    if (static_cast<std::size_t>(bytes) > free) {
      return absl::ResourceExhaustedError(absl::StrCat(spec_.Name(), ": its weights are ", bytes, " bytes, ", free,
                                                       " of the device's ", total, " are free"));
    }
    auto memory = Memory::Allocate(MemoryKind::kDevice, bytes, spec_.Name());
    if (!memory.ok()) return memory.status();
    layer_.memory_ = *std::move(memory);
    return absl::OkStatus();
  }

  absl::Status Upload() {
    const RouterWeights router = source_.router();
    absl::Status status =
        First({upload_.Floats(router.weight, layer_.router_), upload_.Floats(router.bias, layer_.router_bias_),
               upload_.Floats(router.correction_bias, layer_.correction_bias_)});
    for (std::int64_t e = 0; e < spec_.held_experts && status.ok(); ++e) {
      const std::int64_t id = spec_.first_expert + e;
      status = UploadExpert(source_.expert(id), e, spec_.expert_bias, layer_.experts_);
      if (!status.ok()) return absl::Status(status.code(), absl::StrCat("expert ", id, ": ", status.message()));
      source_.Release(id);
    }
    if (status.ok() && has_shared()) status = UploadExpert(source_.shared(), 0, false, layer_.shared_);
    if (status.ok() && layer_.shared_gate_ != nullptr) {
      status = upload_.Floats(source_.shared_gate(), layer_.shared_gate_);
    }
    return status;
  }

  absl::Status UploadExpert(const ExpertWeights& w, std::int64_t index, bool bias, const DeviceExperts& experts) {
    if (auto status = CheckExpert(w, experts.f, bias); !status.ok()) return status;
    const auto like = [](const WeightView& view, WeightCode code) {
      const absl::StatusOr<WeightCode> own = CodeOf(view, "weights");
      return own.ok() && *own == (code == WeightCode::kFp8Both ? WeightCode::kFp8 : code);
    };
    if (!like(w.gate, experts.gate_up.code) || !like(w.up, experts.gate_up.code) || !like(w.down, experts.down.code)) {
      return absl::InvalidArgumentError("its dtypes differ from the first expert's");
    }
    return First(
        {UploadMatrix(w.gate, experts.gate_up, index, 0), UploadMatrix(w.up, experts.gate_up, index, experts.f),
         UploadMatrix(w.down, experts.down, index, 0), UploadPacked({w.gate, w.up}, experts.gate_up, index),
         UploadPacked({w.down}, experts.down, index), UploadBias(w.gate_bias, experts.gate_up, index, 0),
         UploadBias(w.up_bias, experts.gate_up, index, experts.f), UploadBias(w.down_bias, experts.down, index, 0)});
  }

  // Rows [first, first + view.out) of expert `index` of `matrix`, unless it is packed.
  absl::Status UploadMatrix(const WeightView& view, const DeviceMatrix& matrix, std::int64_t index,
                            std::int64_t first) {
    if (matrix.packing != Packing::kNone) return absl::OkStatus();
    const std::int64_t row = index * matrix.out + first;
    absl::Status status = upload_.Codes(view, matrix.codes + row * CodeRowBytes(matrix.code, matrix.in));
    if (status.ok() && matrix.scales != nullptr) {
      status = upload_.Scales(view, matrix.scales + row * ScaleRowBytes(matrix.code, matrix.in));
    }
    return status;
  }

  // Expert `index` of a matrix that is packed, from its one part or two.
  absl::Status UploadPacked(std::initializer_list<WeightView> views, const DeviceMatrix& matrix, std::int64_t index) {
    if (matrix.packing == Packing::kNone) return absl::OkStatus();
    return upload_.Packed(matrix.code, views, matrix.packing, matrix.codes + index * matrix.code_bytes());
  }

  absl::Status UploadBias(const VectorView& bias, const DeviceMatrix& matrix, std::int64_t index, std::int64_t first) {
    return matrix.bias == nullptr ? absl::OkStatus()
                                  : upload_.Floats(bias, matrix.bias + (index * matrix.out + first) * 4);
  }

  const LayerSource& source_;
  const LayerSpec& spec_;
  CudaLayer& layer_;
  WeightUpload& upload_;
  std::int64_t used_ = 0;
};

absl::StatusOr<std::shared_ptr<const CudaLayer>> CudaLayer::Load(const LayerSource& source, int device,
                                                                 const void* owner, ExpertPath path,
                                                                 WeightUpload& upload) {
  std::shared_ptr<CudaLayer> layer(new CudaLayer(source.spec(), device, owner, path));
  if (absl::Status status = CudaLayerLoader(source, *layer, upload).Load(); !status.ok()) return status;
  return std::shared_ptr<const CudaLayer>(std::move(layer));
}

CudaLayer::CudaLayer(const LayerSpec& spec, int device, const void* owner, ExpertPath path)
    : spec_(spec), device_(device), owner_(owner), path_(path), id_(next_id++) {}

CudaLayer::~CudaLayer() {
  // Its memory goes back to its device, whatever this thread's current one is.
  (void)UseDevice(device_);
}

}  // namespace expertd::cuda
