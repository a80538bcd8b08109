// Which layer a command is about.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"

namespace expertd::client {

struct LayerChoice {
  std::string model;                   // empty: any
  std::optional<std::uint32_t> layer;  // absent: the first
};

// The first serving layer that fits, in the server's order. NotFound naming what there is.
absl::StatusOr<v1::Layer> ChooseLayer(const Client& client, const LayerChoice& choice);

// Serving layers of one model (empty: the first serving one's): "all" in increasing order, or indices and ranges as in
// "0-3,7", in that order. NotFound naming what is not served; InvalidArgument when `which` is neither.
absl::StatusOr<std::vector<v1::Layer>> ChooseLayers(const Client& client, const std::string& model,
                                                    const std::string& which);

// "<model>/<layer index>".
std::string LayerName(const v1::Layer& layer);
// "64 experts, 8 per token, hidden 2048, intermediate 1024, bf16".
std::string LayerSizes(const v1::Layer& layer);

}  // namespace expertd::client
