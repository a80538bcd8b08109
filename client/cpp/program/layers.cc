#include "client/cpp/program/layers.h"

#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace expertd::client {
namespace {

constexpr std::uint32_t kMaxLayers = 10000;  // of a range: a typing error is not a plan for a day

// "0-3,7" as {0, 1, 2, 3, 7}.
absl::StatusOr<std::vector<std::uint32_t>> ParseLayers(const std::string& text) {
  std::vector<std::uint32_t> layers;
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, absl::MaxSplits('-', 1));
    std::uint32_t first = 0, last = 0;
    if (!absl::SimpleAtoi(ends.front(), &first) || !absl::SimpleAtoi(ends.back(), &last) || first > last ||
        last - first >= kMaxLayers) {
      return absl::InvalidArgumentError(absl::StrCat("layers: ", text, ": \"", part, "\" is neither N nor LOW-HIGH"));
    }
    for (std::uint32_t layer = first; layer <= last; ++layer) layers.push_back(layer);
  }
  return layers;
}

}  // namespace

std::string LayerName(const v1::Layer& layer) { return absl::StrCat(layer.model(), "/", layer.layer()); }

std::string LayerSizes(const v1::Layer& layer) {
  return absl::StrCat(layer.num_experts(), " experts, ", layer.experts_per_token(), " per token, hidden ",
                      layer.hidden_size(), ", intermediate ", layer.intermediate_size(), ", ", layer.weight_dtype());
}

absl::StatusOr<v1::Layer> ChooseLayer(const Client& client, const LayerChoice& choice) {
  const auto listed = client.ListLayers();
  if (!listed.ok()) return listed.status();
  std::vector<std::string> names;
  for (const v1::Layer& layer : listed->layers()) {
    const bool fits = (choice.model.empty() || choice.model == layer.model()) &&
                      (!choice.layer.has_value() || *choice.layer == layer.layer());
    if (fits && layer.state() == v1::Layer::STATE_SERVING) return layer;
    names.push_back(LayerName(layer));
  }
  return absl::NotFoundError(absl::StrCat("no serving layer ", choice.model.empty() ? "*" : choice.model, "/",
                                          choice.layer.has_value() ? absl::StrCat(*choice.layer) : "*",
                                          "; the server has: ", absl::StrJoin(names, ", ")));
}

absl::StatusOr<std::vector<v1::Layer>> ChooseLayers(const Client& client, const std::string& model,
                                                    const std::string& which) {
  const auto listed = client.ListLayers();
  if (!listed.ok()) return listed.status();
  std::string chosen = model;
  std::map<std::uint32_t, v1::Layer> serving;
  for (const v1::Layer& layer : listed->layers()) {
    if (layer.state() != v1::Layer::STATE_SERVING) continue;
    if (chosen.empty()) chosen = layer.model();
    if (layer.model() == chosen) serving.emplace(layer.layer(), layer);
  }
  if (serving.empty()) return absl::NotFoundError(absl::StrCat("no serving layer of model ", chosen));
  std::vector<v1::Layer> layers;
  if (which == "all") {
    for (const auto& [index, layer] : serving) layers.push_back(layer);
    return layers;
  }
  const auto indices = ParseLayers(which);
  if (!indices.ok()) return indices.status();
  for (const std::uint32_t index : *indices) {
    const auto found = serving.find(index);
    if (found == serving.end()) return absl::NotFoundError(absl::StrCat("no serving layer ", chosen, "/", index));
    layers.push_back(found->second);
  }
  return layers;
}

}  // namespace expertd::client
