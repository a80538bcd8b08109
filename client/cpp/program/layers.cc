#include "client/cpp/program/layers.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace expertd::client {

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

}  // namespace expertd::client
