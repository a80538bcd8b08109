#include "kernels/expert_path.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "kernels/cuda/hopper/fused_config.h"

namespace expertd {
namespace {

struct NamedPath {
  absl::string_view name;
  ExpertPath path;
};
constexpr NamedPath kPaths[] = {
    {"auto", ExpertPath::kAuto}, {"sorted", ExpertPath::kSorted}, {"batched", ExpertPath::kBatched}};

}  // namespace

absl::StatusOr<ExpertPath> ParseExpertPath(absl::string_view name) {
  if (name.empty()) return ExpertPath::kAuto;
  for (const NamedPath& path : kPaths) {
    if (path.name == name) return path.path;
  }
  return absl::InvalidArgumentError(absl::StrFormat("path: '%s' is not auto, sorted or batched", name));
}

std::string HopperPathInWords(const LayerSpec& spec) {
  // The kernel tells bf16 from everything else, no more.
  const bool bf16 = spec.expert_format == WeightFormat::kBF16;
  const char* const obstacle = cuda::FusedObstacle(bf16 ? cuda::WeightCode::kBF16 : cuda::WeightCode::kElement,
                                                   spec.hidden_size, spec.intermediate_size, spec.held_experts);
  return obstacle == nullptr ? "fused" : absl::StrCat("sorted: ", obstacle);
}

}  // namespace expertd
