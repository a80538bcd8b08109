// Which layers a server will load, and where from: known before anything is bound or read.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/checkpoint/checkpoint.h"
#include "kernels/layer_source.h"
#include "kernels/layer_spec.h"
#include "server/options.h"

namespace expertd {

struct PlannedLayer {
  LayerSpec spec;
  std::function<absl::StatusOr<std::unique_ptr<LayerSource>>()> open;  // checks the layer's tensors, reads nothing
  std::int64_t bytes = 0;                                              // of its tensors on disk
};

// The layers `wanted` of a checkpoint; empty: all of its MoE layers. NotFound: no such folder or layer; otherwise
// errors name file, tensor or layer, and the reason.
absl::StatusOr<std::vector<PlannedLayer>> PlanCheckpoint(const std::string& dir, const CheckpointOptions& options,
                                                         const std::vector<std::int64_t>& wanted);

// Opens every --checkpoint and selects --layers of it. Errors name file, tensor or layer, and the reason.
absl::StatusOr<std::vector<PlannedLayer>> PlanLayers(const ServerOptions& options);

// Of the planned layers and of those that may be loaded later.
std::int64_t LargestHiddenSize(const ServerOptions& options, const std::vector<PlannedLayer>& plan);

}  // namespace expertd
