#include "server/layer_table.h"

#include <string_view>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace expertd {
absl::Status LayerTable::Announce(const LayerSpec& spec) {
  MutexLock lock(mutex_);
  if (!models_[spec.model].try_emplace(spec.layer, Row{spec, nullptr}).second) {
    return absl::AlreadyExistsError(
        absl::StrCat("layer ", spec.Name(), " is configured twice; name one model with NAME=DIR"));
  }
  return absl::OkStatus();
}

void LayerTable::Serve(LayerPtr layer) {
  MutexLock lock(mutex_);
  models_[layer->spec().model][layer->spec().layer] = Row{layer->spec(), layer};
}

absl::StatusOr<LayerPtr> LayerTable::Find(absl::string_view model, std::int64_t layer) const {
  MutexLock lock(mutex_);
  const auto layers = models_.find(std::string_view(model.data(), model.size()));
  if (layers == models_.end()) return NotFound(model, layer);
  const auto row = layers->second.find(layer);
  if (row == layers->second.end()) return NotFound(model, layer);
  if (row->second.layer == nullptr)
    return absl::UnavailableError(absl::StrCat("layer ", model, "/", layer, " is loading"));
  return row->second.layer;
}

absl::Status LayerTable::NotFound(absl::string_view model, std::int64_t layer) const {
  const auto layers = models_.find(std::string_view(model.data(), model.size()));
  if (layers == models_.end()) {
    const auto name = [](std::string* out, const auto& entry) { absl::StrAppend(out, entry.first); };
    return absl::NotFoundError(
        absl::StrCat("model '", model, "' is not served here (", absl::StrJoin(models_, ", ", name), ")"));
  }
  return absl::NotFoundError(absl::StrCat("layer ", model, "/", layer, " is not served here (", layers->second.size(),
                                          " layers from ", layers->second.begin()->first, " to ",
                                          layers->second.rbegin()->first, ")"));
}

std::vector<LayerTable::Row> LayerTable::List() const {
  MutexLock lock(mutex_);
  std::vector<Row> rows;
  for (const auto& [model, layers] : models_) {
    for (const auto& [index, row] : layers) rows.push_back(row);
  }
  return rows;
}

}  // namespace expertd
