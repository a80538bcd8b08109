// How an engine computes a layer's experts, where it has several ways: fixed when the engine is made, never by a batch.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/layer_spec.h"

namespace expertd {

enum class ExpertPath : std::uint8_t {
  kAuto,     // the engine's fastest way that keeps a row's bits independent of its batch (CUDA: fused or sorted)
  kSorted,   // CUDA: slots sorted by expert, grouped products
  kBatched,  // CUDA: padded to [E, most rows of an expert, D], cuBLAS. A row's bits depend on its batch
  kFp8Rows   // CUDA, Hopper: fp8 weights meet bf16 rows that are quantised to e4m3, which costs 4e-2
};

// What Layer::path() says of kFp8Rows, and people to --path.
inline constexpr absl::string_view kFp8RowsPath = "fp8-rows";

// How bf16 rows of such a layer run on a Hopper device by default, for people: "fused", or "sorted" and why.
std::string HopperPathInWords(const LayerSpec& spec);

// "auto", "sorted", "batched", "fp8-rows"; empty is auto. InvalidArgument naming what there is.
absl::StatusOr<ExpertPath> ParseExpertPath(absl::string_view name);

}  // namespace expertd
