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

std::vector<LayerPtr> LayerTable::Serve(const std::vector<LayerPtr>& layers) {
  std::vector<LayerPtr> replaced;
  MutexLock lock(mutex_);
  for (const LayerPtr& layer : layers) {
    Row& row = models_[layer->spec().model][layer->spec().layer];
    if (row.layer != nullptr) replaced.push_back(row.layer);
    row = Row{layer->spec(), layer};
  }
  return replaced;
}

absl::StatusOr<std::vector<LayerTable::Row>> LayerTable::Withdraw(const std::string& model,
                                                                  std::optional<std::int64_t> layer) {
  MutexLock lock(mutex_);
  const auto layers = models_.find(model);
  if (layers == models_.end() || (layer && !layers->second.contains(*layer))) return NotFound(model, layer.value_or(0));
  std::vector<Row> gone;
  for (const auto& [index, row] : layers->second) {
    if (layer && index != *layer) continue;
    if (row.layer == nullptr) return absl::UnavailableError(absl::StrCat("layer ", row.spec.Name(), " is loading"));
    gone.push_back(row);
  }
  for (const Row& row : gone) layers->second.erase(row.spec.layer);
  if (layers->second.empty()) models_.erase(layers);
  return gone;
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
