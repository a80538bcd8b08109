// Which layers a server will load, and where from: known before anything is bound or read.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layer_source.h"
#include "kernels/layer_spec.h"
#include "server/options.h"

namespace expertd {

struct PlannedLayer {
  LayerSpec spec;
  std::function<absl::StatusOr<std::unique_ptr<LayerSource>>()> open;  // checks the layer's tensors, reads nothing
};

// Opens every --checkpoint and selects --layers of it. Errors name file, tensor or layer, and the reason.
absl::StatusOr<std::vector<PlannedLayer>> PlanLayers(const ServerOptions& options);

}  // namespace expertd
