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
constexpr NamedPath kPaths[] = {{"auto", ExpertPath::kAuto},
                                {"sorted", ExpertPath::kSorted},
                                {"batched", ExpertPath::kBatched},
                                {kFp8RowsPath, ExpertPath::kFp8Rows}};

cuda::WeightCode CodeOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBF16:
      return cuda::WeightCode::kBF16;
    case WeightFormat::kF16:
      return cuda::WeightCode::kF16;
    case WeightFormat::kF32:
      return cuda::WeightCode::kF32;
    case WeightFormat::kFp8Block128:
      return cuda::WeightCode::kFp8;
    case WeightFormat::kMxfp4:
      return cuda::WeightCode::kMxfp4;
  }
  return cuda::WeightCode::kElement;
}

}  // namespace

absl::StatusOr<ExpertPath> ParseExpertPath(absl::string_view name) {
  if (name.empty()) return ExpertPath::kAuto;
  for (const NamedPath& path : kPaths) {
    if (path.name == name) return path.path;
  }
  return absl::InvalidArgumentError(absl::StrFormat("path: '%s' is not auto, sorted, batched or fp8-rows", name));
}

std::string HopperPathInWords(const LayerSpec& spec) {
  const char* const obstacle =
      cuda::FusedObstacle(CodeOf(spec.expert_format), spec.hidden_size, spec.intermediate_size, spec.held_experts);
  return obstacle == nullptr ? "fused" : absl::StrCat("sorted: ", obstacle);
}

}  // namespace expertd
