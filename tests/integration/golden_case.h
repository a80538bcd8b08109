// The golden checkpoints under tests/data/golden: a tiny checkpoint each, rows, and what a layer must answer.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "client/cpp/messages.h"
#include "kernels/checkpoint/safetensors.h"

namespace expertd::testing {

// Every case, by name, in order.
std::vector<std::string> GoldenNames();
std::string GoldenDir(const std::string& name);

struct GoldenLayer {
  std::uint32_t layer = 0;
  std::vector<double> output;  // [N, D]
  // [N, K], in the model's own order within a row; empty where the model's router returns none.
  std::int64_t k = 0;
  std::vector<std::int64_t> topk_ids;
  std::vector<double> topk_weights;
};

struct GoldenCase {
  explicit GoldenCase(const std::string& name);  // of the file's own shape, or the test program ends

  std::string name;
  std::int64_t rows = 0;
  std::int64_t hidden_size = 0;
  std::string hidden_states;  // bf16 [N, D]
  std::vector<GoldenLayer> layers;

  // All rows for that layer of model `name`, server-routed, answered in f32.
  client::Request RequestFor(std::uint32_t layer) const;
};

// The answer's elements, whatever their type.
std::vector<double> Values(const client::Answer& answer);
std::vector<double> ValuesOf(const void* data, DType dtype, std::size_t count);

}  // namespace expertd::testing
