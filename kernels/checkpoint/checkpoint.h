// A published checkpoint folder: config.json, one or several safetensors files, and the MoE layers that they hold.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/layer_source.h"
#include "kernels/layer_spec.h"

namespace expertd {

struct CheckpointOptions {
  std::string model;   // name to serve under; empty: the folder's name
  std::string family;  // overrides config.json's model_type; empty: what the file says
};

// A layer that has experts but cannot be run, and why.
struct UnsupportedLayer {
  std::int64_t layer = 0;
  std::string reason;
};

// Opened and checked, nothing read of the weights yet. Immutable and thread-safe.
class Checkpoint {
 public:
  virtual ~Checkpoint() = default;

  // InvalidArgument naming file, tensor or key, and the reason; NotFound when the folder or config.json is missing.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(const std::string& dir,
                                                          const CheckpointOptions& options = {});

  virtual const std::string& family() const = 0;
  // The runnable MoE layers, ascending by index.
  virtual const std::vector<LayerSpec>& layers() const = 0;
  virtual const std::vector<UnsupportedLayer>& unsupported() const = 0;
  // Bytes of layer `layer`'s tensors on disk.
  virtual std::int64_t LayerBytes(std::int64_t layer) const = 0;
  // Keeps the files mapped while it lives, independently of this object. Checks presence, dtype and shape of every
  // tensor of the layer before it returns. NotFound: no such MoE layer.
  virtual absl::StatusOr<std::unique_ptr<LayerSource>> OpenLayer(std::int64_t layer) const = 0;
};

}  // namespace expertd
