// One layer's tensors: found by the family's names, checked, and seen as matrices. Private to kernels/checkpoint.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/checkpoint/config.h"
#include "kernels/checkpoint/families.h"
#include "kernels/checkpoint/tensor_table.h"
#include "kernels/layer_source.h"

namespace expertd {

// The layer's bytes of one tensor (all of it, or one expert's slice of a stacked one) and what they are for.
struct TensorPart {
  std::string role;  // "gate", "down.scales", ...: independent of the file's names
  DType dtype = DType::kF32;
  std::vector<std::int64_t> shape;
  const std::byte* data = nullptr;
  std::int64_t bytes = 0;
  std::shared_ptr<const SafetensorsFile> file;
};

struct LayerTensors {
  LayerSpec spec;
  RouterWeights router;
  ExpertWeights shared;
  VectorView shared_gate;
  std::vector<ExpertWeights> experts;

  std::vector<TensorPart> parts;                      // router and shared expert
  std::vector<std::vector<TensorPart>> expert_parts;  // of each expert
  // What the views cannot see in place: tensors that do not lie at a multiple of their element size, bf16 block scales.
  std::vector<std::unique_ptr<std::uint64_t[]>> owned;
};

// Where the MoE layers are: index -> prefix of its names, "model.layers.3.". A layer counts as one when any of the
// family's router or expert tensors is there; ResolveLayer then asks for all of them. InvalidArgument: one index under
// two prefixes.
absl::StatusOr<std::map<std::int64_t, std::string>> FindMoeLayers(const TensorTable& table, const Family& family);

enum class Copies : std::uint8_t {
  kNone,  // check only: views that would need a copy stay on the unaligned bytes and must not be read
  kMake,
};

// Checks presence, dtype and shape of all of the layer's tensors. InvalidArgument naming file, tensor and reason: the
// checkpoint is broken; Unimplemented: a format that this program does not read.
absl::StatusOr<LayerTensors> ResolveLayer(const TensorTable& table, const Family& family, const ModelConfig& config,
                                          std::int64_t layer, const std::string& prefix, Copies copies);

}  // namespace expertd
