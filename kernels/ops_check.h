// The argument checks of kernels/ops.h, once for every implementation: sizes within limits, element types, pointers
// that must not be null, rules that fit. InvalidArgument naming field, value and limit. They read nothing through the
// pointers.
#pragma once

#include <cstdint>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/ops.h"

namespace expertd {

absl::Status Check(const ActivationForwardArgs& args);
absl::Status Check(const ActivationBackwardArgs& args);
absl::Status Check(const FusedTopkRoutingArgs& args);
absl::Status Check(const MoeAlignBlockSizeArgs& args);
absl::Status Check(const FusedRoutingScatterArgs& args);
absl::Status Check(const FusedGatherReduceArgs& args);
absl::Status Check(const FusedWeightedScatterArgs& args);
absl::Status Check(const FusedRoutingWeightGradArgs& args);
absl::Status Check(const FusedDispatchPackArgs& args);
absl::Status Check(const MoeGroupedGemmArgs& args);
absl::Status Check(const FusedMoeForwardArgs& args);
absl::Status Check(const MoeWeightGradArgs& args);

// For implementations that can read their index arrays: every value in [-1, limit).
absl::Status CheckIndices(absl::string_view field, absl::Span<const std::int32_t> indices, std::int64_t limit);
// Starts at 0, never decreases and ends within `positions`.
absl::Status CheckOffsets(absl::Span<const std::int32_t> offsets, std::int64_t positions);

}  // namespace expertd
