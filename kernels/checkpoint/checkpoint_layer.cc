#include "kernels/checkpoint/checkpoint_layer.h"

#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/base/mutex.h"
#include "xxhash.h"

namespace expertd {
namespace {

struct StateDeleter {
  void operator()(XXH3_state_t* state) const { XXH3_freeState(state); }
};

// Of every part's role, type, shape and bytes.
XXH128_hash_t Digest(const std::vector<TensorPart>& parts) {
  const std::unique_ptr<XXH3_state_t, StateDeleter> state(XXH3_createState());
  XXH3_128bits_reset(state.get());
  for (const TensorPart& part : parts) {
    const std::string head = absl::StrCat(part.role, " ", DTypeName(part.dtype), " ", ShapeText(part.shape), "\n");
    XXH3_128bits_update(state.get(), head.data(), head.size());
    XXH3_128bits_update(state.get(), part.data, static_cast<std::size_t>(part.bytes));
  }
  return XXH3_128bits_digest(state.get());
}

void DropPages(const std::vector<TensorPart>& parts) {
  for (const TensorPart& part : parts) part.file->DropPages(part.data, part.bytes);
}

class CheckpointLayer : public LayerSource {
 public:
  explicit CheckpointLayer(LayerTensors tensors) : tensors_(std::move(tensors)), digests_(tensors_.experts.size()) {}

  const LayerSpec& spec() const override { return tensors_.spec; }
  RouterWeights router() const override { return tensors_.router; }
  ExpertWeights expert(std::int64_t expert) const override {
    return tensors_.experts[static_cast<std::size_t>(expert)];
  }
  ExpertWeights shared() const override { return tensors_.shared; }
  VectorView shared_gate() const override { return tensors_.shared_gate; }

  void Release(std::int64_t expert) const override {
    // Hashed while its pages are still in memory, so that the fingerprint costs no second pass over the files.
    ExpertDigest(static_cast<std::size_t>(expert));
    DropPages(tensors_.expert_parts[static_cast<std::size_t>(expert)]);
  }

  absl::StatusOr<std::string> Fingerprint() const override {
    std::vector<XXH128_hash_t> digests = {Digest(tensors_.parts)};
    for (std::size_t e = 0; e < tensors_.experts.size(); ++e) {
      digests.push_back(ExpertDigest(e));
      DropPages(tensors_.expert_parts[e]);
    }
    std::string text = tensors_.spec.Canonical();
    for (const XXH128_hash_t& digest : digests)
      absl::StrAppendFormat(&text, " %016x%016x", digest.high64, digest.low64);
    const XXH128_hash_t all = XXH3_128bits(text.data(), text.size());
    return absl::StrFormat("%016x%016x", all.high64, all.low64);
  }

 private:
  XXH128_hash_t ExpertDigest(std::size_t expert) const {
    {
      MutexLock lock(mutex_);
      if (digests_[expert].has_value()) return *digests_[expert];
    }
    const XXH128_hash_t digest = Digest(tensors_.expert_parts[expert]);
    MutexLock lock(mutex_);
    digests_[expert] = digest;
    return digest;
  }

  const LayerTensors tensors_;
  mutable Mutex mutex_;
  mutable std::vector<std::optional<XXH128_hash_t>> digests_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::unique_ptr<LayerSource> MakeCheckpointLayer(LayerTensors tensors) {
  return std::make_unique<CheckpointLayer>(std::move(tensors));
}

}  // namespace expertd
