// All tensors of a checkpoint, whichever file they lie in. Private to kernels/checkpoint.
#pragma once

#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "kernels/checkpoint/safetensors.h"

namespace expertd {

// A tensor where it lies. The file is kept mapped.
struct PlacedTensor {
  std::shared_ptr<const SafetensorsFile> file;
  const TensorEntry* entry = nullptr;
};

struct TensorTable {
  std::string listing;  // the file that says what there is: model.safetensors or the index
  std::map<std::string, PlacedTensor> tensors;
};

// Reads `dir`/model.safetensors, or else the shards that `dir`/model.safetensors.index.json names. The index decides
// what belongs to the checkpoint: other tensors of a shard are passed over. NotFound: neither is there; InvalidArgument
// naming file and tensor: a broken file or index, a missing shard, a shard named by a path, a tensor that its shard
// does not hold or that another shard holds too.
absl::StatusOr<TensorTable> OpenTensors(const std::string& dir);

}  // namespace expertd
