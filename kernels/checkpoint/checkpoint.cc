#include "kernels/checkpoint/checkpoint.h"

#include <sys/stat.h>

#include <map>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "kernels/checkpoint/checkpoint_layer.h"
#include "kernels/checkpoint/config.h"
#include "kernels/checkpoint/families.h"
#include "kernels/checkpoint/layer_tensors.h"
#include "kernels/checkpoint/tensor_table.h"

namespace expertd {
namespace {

std::int64_t BytesOf(const LayerTensors& tensors) {
  std::int64_t bytes = 0;
  for (const TensorPart& part : tensors.parts) bytes += part.bytes;
  for (const auto& parts : tensors.expert_parts) {
    for (const TensorPart& part : parts) bytes += part.bytes;
  }
  return bytes;
}

// "/models/olmoe/" -> "olmoe".
std::string FolderName(absl::string_view dir) {
  while (dir.size() > 1 && absl::ConsumeSuffix(&dir, "/")) continue;
  return std::string(dir.substr(dir.find_last_of('/') + 1));
}

class FolderCheckpoint : public Checkpoint {
 public:
  FolderCheckpoint(std::string model, const Family* family, ModelConfig config, TensorTable tensors)
      : model_(std::move(model)),
        family_(family),
        family_name_(family->model_type),
        config_(std::move(config)),
        tensors_(std::move(tensors)) {}

  absl::Status FindLayers() {
    auto found = FindMoeLayers(tensors_, *family_);
    if (!found.ok()) return found.status();
    prefixes_ = *std::move(found);
    for (const auto& [layer, prefix] : prefixes_) {
      auto resolved = ResolveLayer(tensors_, *family_, config_, layer, prefix, Copies::kNone);
      if (absl::IsUnimplemented(resolved.status())) {
        unsupported_.push_back({layer, std::string(resolved.status().message())});
        continue;
      }
      if (!resolved.ok()) return resolved.status();
      bytes_[layer] = BytesOf(*resolved);
      resolved->spec.model = model_;
      layers_.push_back(std::move(resolved->spec));
    }
    return absl::OkStatus();
  }

  const std::string& family() const override { return family_name_; }
  const std::vector<LayerSpec>& layers() const override { return layers_; }
  const std::vector<UnsupportedLayer>& unsupported() const override { return unsupported_; }

  std::int64_t LayerBytes(std::int64_t layer) const override {
    const auto found = bytes_.find(layer);
    return found == bytes_.end() ? 0 : found->second;
  }

  absl::StatusOr<std::unique_ptr<LayerSource>> OpenLayer(std::int64_t layer) const override {
    const auto found = prefixes_.find(layer);
    if (found == prefixes_.end()) return absl::NotFoundError(absl::StrFormat("%s has no MoE layer %d", model_, layer));
    auto resolved = ResolveLayer(tensors_, *family_, config_, layer, found->second, Copies::kMake);
    if (!resolved.ok()) return resolved.status();
    resolved->spec.model = model_;
    return MakeCheckpointLayer(*std::move(resolved));
  }

 private:
  const std::string model_;
  const Family* const family_;
  const std::string family_name_;
  const ModelConfig config_;
  const TensorTable tensors_;
  std::map<std::int64_t, std::string> prefixes_;
  std::map<std::int64_t, std::int64_t> bytes_;
  std::vector<LayerSpec> layers_;
  std::vector<UnsupportedLayer> unsupported_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(const std::string& dir, const CheckpointOptions& options) {
  struct stat info {};
  if (stat(dir.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::NotFoundError(absl::StrCat(dir, ": no such folder"));
  }
  auto config = ModelConfig::Read(absl::StrCat(dir, "/config.json"));
  if (!config.ok()) return config.status();
  auto family = ChooseFamily(*config, options.family);
  if (!family.ok()) return family.status();
  auto tensors = OpenTensors(dir);
  if (!tensors.ok()) return tensors.status();
  auto checkpoint = std::make_unique<FolderCheckpoint>(options.model.empty() ? FolderName(dir) : options.model, *family,
                                                       *std::move(config), *std::move(tensors));
  if (absl::Status status = checkpoint->FindLayers(); !status.ok()) return status;
  return checkpoint;
}

}  // namespace expertd
