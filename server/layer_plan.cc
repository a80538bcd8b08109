#include "server/layer_plan.h"

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

absl::Status LayerMissing(const Checkpoint& checkpoint, const std::string& dir, std::int64_t layer) {
  for (const UnsupportedLayer& unsupported : checkpoint.unsupported()) {
    if (unsupported.layer != layer) continue;
    return absl::InvalidArgumentError(absl::StrCat(dir, ": layer ", layer, " cannot be run: ", unsupported.reason));
  }
  return absl::NotFoundError(absl::StrCat(dir, ": has no MoE layer ", layer));
}

}  // namespace

absl::StatusOr<std::vector<PlannedLayer>> PlanCheckpoint(const std::string& dir, const CheckpointOptions& options,
                                                         const std::vector<std::int64_t>& wanted) {
  absl::StatusOr<std::unique_ptr<Checkpoint>> opened = Checkpoint::Open(dir, options);
  if (!opened.ok()) return opened.status();
  const std::shared_ptr<const Checkpoint> checkpoint = *std::move(opened);
  std::vector<LayerSpec> specs = checkpoint->layers();
  if (!wanted.empty()) {
    specs.clear();
    for (const std::int64_t layer : wanted) {
      const auto found = std::find_if(checkpoint->layers().begin(), checkpoint->layers().end(),
                                      [&](const LayerSpec& spec) { return spec.layer == layer; });
      if (found == checkpoint->layers().end()) return LayerMissing(*checkpoint, dir, layer);
      specs.push_back(*found);
    }
  } else if (!checkpoint->unsupported().empty()) {
    // Leaving a layer out unasked would surprise the model's other half at run time.
    return LayerMissing(*checkpoint, dir, checkpoint->unsupported().front().layer);
  }
  if (specs.empty()) return absl::InvalidArgumentError(absl::StrCat(dir, ": has no MoE layer"));
  std::vector<PlannedLayer> plan;
  for (LayerSpec& spec : specs) {
    plan.push_back({spec, [checkpoint, layer = spec.layer] { return checkpoint->OpenLayer(layer); },
                    checkpoint->LayerBytes(spec.layer)});
  }
  return plan;
}

absl::StatusOr<std::vector<PlannedLayer>> PlanLayers(const ServerOptions& options) {
  std::vector<std::int64_t> wanted;
  if (absl::Status status = ParseLayerList(options.layers, &wanted); !status.ok()) return status;
  std::vector<PlannedLayer> plan;
  for (const std::string& argument : options.checkpoints) {
    CheckpointOptions checkpoint = {.family = options.family};
    std::string dir = argument;
    // A name holds no slash, so that a folder called a=b can still be given as ./a=b.
    const std::size_t equals = argument.find('=');
    if (equals != std::string::npos && argument.find('/') > equals) {
      checkpoint.model = argument.substr(0, equals);
      dir = argument.substr(equals + 1);
    }
    absl::StatusOr<std::vector<PlannedLayer>> planned = PlanCheckpoint(dir, checkpoint, wanted);
    if (!planned.ok()) return planned.status();
    plan.insert(plan.end(), planned->begin(), planned->end());
  }
  return plan;
}

std::int64_t LargestHiddenSize(const ServerOptions& options, const std::vector<PlannedLayer>& plan) {
  std::int64_t largest = options.max_hidden_size;
  for (const PlannedLayer& layer : plan) largest = std::max(largest, layer.spec.hidden_size);
  return largest;
}

}  // namespace expertd
