// A layer resident on one device, in the small form of its checkpoint.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/cuda/engine/memory.h"
#include "kernels/cuda/engine/weight_upload.h"
#include "kernels/cuda/hopper/packed_weights.h"
#include "kernels/engine.h"
#include "kernels/expert_path.h"

namespace expertd::cuda {

// [out, in] for each of some experts, one after another. Device pointers into the layer's memory.
struct DeviceMatrix {
  WeightCode code = WeightCode::kBF16;
  Packing packing = Packing::kNone;  // otherwise scales are among the codes
  std::int64_t out = 0, in = 0;
  std::byte* codes = nullptr;
  std::byte* scales = nullptr;  // null: none
  std::byte* bias = nullptr;    // f32 [out] for each expert, or null
  // Of one expert.
  std::int64_t code_bytes() const {
    return packing == Packing::kNone ? out * CodeRowBytes(code, in) : PackedBytes(code, out, in);
  }
  std::int64_t scale_bytes() const { return packing == Packing::kNone ? out * ScaleRowBytes(code, in) : 0; }
};

struct DeviceExperts {
  std::int64_t count = 0, d = 0, f = 0;
  DeviceMatrix gate_up;  // gate's rows, then up's
  DeviceMatrix down;
  bool fused = false;                                                     // bf16 rows take Hopper's fused kernel
  bool fp8_rows() const { return gate_up.code == WeightCode::kFp8Both; }  // which quantises them
};

class CudaLayer final : public Layer {
 public:
  // The calling thread's current device is `device`. Nothing is taken from it unless all of it fits.
  static absl::StatusOr<std::shared_ptr<const CudaLayer>> Load(const LayerSource& source, int device, const void* owner,
                                                               ExpertPath path, WeightUpload& upload);
  ~CudaLayer() override;

  const LayerSpec& spec() const override { return spec_; }
  const std::string& fingerprint() const override { return fingerprint_; }
  std::int64_t weight_bytes() const override { return memory_.bytes(); }
  absl::string_view path() const override {
    if (batched()) return "batched";
    if (path_ == ExpertPath::kFp8Rows) return kFp8RowsPath;
    return experts_.fused || (experts_.count == 0 && shared_.fused) ? "fused" : "sorted";
  }

  const void* owner() const { return owner_; }
  std::uint64_t id() const { return id_; }  // no other layer of this process has it, before or after
  bool batched() const { return path_ == ExpertPath::kBatched; }
  const DeviceExperts& experts() const { return experts_; }
  const DeviceExperts& shared() const { return shared_; }                      // count 0: none
  const float* router() const { return AsFloats(router_); }                    // [E, D]
  const float* router_bias() const { return AsFloats(router_bias_); }          // [E] or null
  const float* correction_bias() const { return AsFloats(correction_bias_); }  // [E] or null
  const float* shared_gate() const { return AsFloats(shared_gate_); }          // [D] or null

 private:
  friend class CudaLayerLoader;
  CudaLayer(const LayerSpec& spec, int device, const void* owner, ExpertPath path);
  static const float* AsFloats(const std::byte* bytes) { return reinterpret_cast<const float*>(bytes); }

  const LayerSpec spec_;
  const int device_;
  const void* const owner_;
  const ExpertPath path_;
  const std::uint64_t id_;
  std::string fingerprint_;
  Memory memory_;  // everything below points into it
  DeviceExperts experts_, shared_;
  std::byte *router_ = nullptr, *router_bias_ = nullptr, *correction_bias_ = nullptr, *shared_gate_ = nullptr;
};

}  // namespace expertd::cuda
