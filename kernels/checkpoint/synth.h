// Checkpoints of random weights with a real model's shapes and names, in the published format: for sizing, load tests
// and trying expertd without a model's weights.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/checkpoint/safetensors_writer.h"
#include "kernels/layer_spec.h"

namespace expertd {

// A published model: what its config.json says of its MoE layers.
struct SynthPreset {
  absl::string_view name;        // "qwen3-30b-a3b"
  absl::string_view model_type;  // family
  std::int64_t hidden_size, experts, experts_per_token, intermediate_size;
  std::int64_t layers;                        // of the model, dense ones included
  std::int64_t first_moe = 0;                 // index of the first MoE layer
  std::int64_t moe_step = 1;                  // every how many layers one is MoE
  WeightFormat format = WeightFormat::kBF16;  // of its experts, as published
  absl::string_view extra = "";               // more keys of config.json
};

absl::Span<const SynthPreset> SynthPresets();

struct SynthOptions {
  std::string like;          // a preset's name
  std::int64_t layers = 1;   // MoE layers to write, from the first; 0: as many as the model has
  std::int64_t experts = 0;  // 0 here and below: as the model has
  std::int64_t hidden_size = 0;
  std::int64_t intermediate_size = 0;
  std::string dtype;                     // "bf16", "fp8", "mxfp4"; empty: as published
  std::uint64_t seed = 0;                // equal options give equal bytes, on any machine
  std::int64_t shard_bytes = 4LL << 30;  // a new file begins when one holds this many
};

// How a tensor's elements are made.
enum class SynthFill : std::uint8_t { kNormal, kFp8Codes, kFp8Scales, kMxfp4Codes, kMxfp4Scales };

struct SynthTensor {
  TensorInfo info;
  SynthFill fill = SynthFill::kNormal;
  double sigma = 0;  // standard deviation of the weights that the tensor (or the codes it scales) stands for
};

struct SynthPlan {
  std::string config;  // config.json
  std::vector<std::vector<SynthTensor>> shards;
  std::int64_t bytes = 0;  // of all tensors
  std::uint64_t seed = 0;
};

// What would be written. InvalidArgument: an unknown preset (the message lists the known ones) or dtype, sizes that no
// layer can have, a dtype in which the family is not published.
absl::StatusOr<SynthPlan> PlanSynth(const SynthOptions& options);

// Called after every few MiB, from one thread at a time.
using SynthProgress = std::function<void(std::int64_t bytes, std::int64_t total)>;

struct SynthWriteOptions {
  bool force = false;  // write into a folder that is not empty, replacing a checkpoint in it
  int threads = 0;     // 0: one for each core
};

// Makes the folder if need be; config.json comes last, so that a folder without it is unfinished.
// FailedPrecondition: the folder is not empty; ResourceExhausted: it has too little free space, nothing was written;
// Unavailable: what the system said.
absl::Status WriteSynth(const SynthPlan& plan, const std::string& dir, const SynthWriteOptions& options = {},
                        const SynthProgress& progress = nullptr);

}  // namespace expertd
