// Layers of random weights in memory, for any LayerSpec and every weight format, laid out as checkpoints lay them out.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/layer_source.h"
#include "kernels/layer_spec.h"

namespace expertd::testing {

// How gate [F, D] and up [F, D] lie in memory, and down [D, F] beside them. Views of all layouts read the same way, by
// their strides.
enum class WeightLayout : std::uint8_t {
  kRows,                // gate's rows, then up's: separate tensors, or granite's [2F, D]
  kInterleavedRows,     // a row of gate, a row of up, ...: gpt_oss in mxfp4
  kColumns,             // [D, 2F], gate's columns, then up's, and down as [F, D]: llama4
  kInterleavedColumns,  // [D, 2F], even columns gate, and down as [F, D]: gpt_oss in bf16
};

struct RandomLayerOptions {
  std::uint64_t seed = 1;
  WeightLayout layout = WeightLayout::kRows;  // fp8: kRows only; mxfp4: not the column layouts
  DType router_dtype = DType::kBF16;          // kBF16 or kF32
  double weight_scale = 0.7;                  // standard deviation of expert weights, times 1 / sqrt(in)
  double router_scale = 2.0;                  // the same of router weights
};

// The weights are a function of the options, the sizes and formats of `spec`, and the expert's id alone: the same on
// every machine, in every shard of a partial layer, and generated when they are asked for, so that a big layer costs
// memory only for experts between expert() and Release(). mxfp4 needs D and F (and the shared F) to be multiples of 32.
// Ends the program with a message when spec.Validate() fails or layout and format do not go together.
std::unique_ptr<LayerSource> MakeRandomLayer(const LayerSpec& spec, const RandomLayerOptions& options = {});

// A valid spec of the given sizes that holds all experts: softmax, renormalised, silu, bf16, no shared expert.
LayerSpec SimpleSpec(std::int64_t hidden_size, std::int64_t num_experts, std::int64_t experts_per_token,
                     std::int64_t intermediate_size);

}  // namespace expertd::testing
