// Which layer a command is about.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"

namespace expertd::client {

struct LayerChoice {
  std::string model;                   // empty: any
  std::optional<std::uint32_t> layer;  // absent: the first
};

// The first serving layer that fits, in the server's order. NotFound naming what there is.
absl::StatusOr<v1::Layer> ChooseLayer(const Client& client, const LayerChoice& choice);

// "<model>/<layer index>".
std::string LayerName(const v1::Layer& layer);
// "64 experts, 8 per token, hidden 2048, intermediate 1024, bf16".
std::string LayerSizes(const v1::Layer& layer);

}  // namespace expertd::client
