// The LayerSource of a checkpoint on disk. Private to kernels/checkpoint.
#pragma once

#include <memory>

#include "kernels/checkpoint/layer_tensors.h"
#include "kernels/layer_source.h"

namespace expertd {

// `tensors` were resolved with Copies::kMake.
std::unique_ptr<LayerSource> MakeCheckpointLayer(LayerTensors tensors);

}  // namespace expertd
