// The layers that a server knows, loading or loaded.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"
#include "kernels/engine.h"
#include "kernels/layer_spec.h"

namespace expertd {

// Self-synchronised.
class LayerTable {
 public:
  struct Row {
    LayerSpec spec;
    LayerPtr layer;  // null while loading
  };

  // A layer that will be loaded. AlreadyExists: another one has its name.
  absl::Status Announce(const LayerSpec& spec);
  // All of them serve under their names from now on, announced or not. Returns those whose places they took.
  std::vector<LayerPtr> Serve(const std::vector<LayerPtr>& layers);
  // One layer of a model, or all of them, are not known from now on; returns what they were. NotFound, and for a layer
  // that is still loading Unavailable: nothing has changed.
  absl::StatusOr<std::vector<Row>> Withdraw(const std::string& model, std::optional<std::int64_t> layer);

  // Unavailable: still loading. NotFound, with what there is instead.
  absl::StatusOr<LayerPtr> Find(absl::string_view model, std::int64_t layer) const;

  // Ordered by model and layer.
  std::vector<Row> List() const;

 private:
  using Layers = std::map<std::int64_t, Row>;
  absl::Status NotFound(absl::string_view model, std::int64_t layer) const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  mutable Mutex mutex_;
  std::map<std::string, Layers, std::less<>> models_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
