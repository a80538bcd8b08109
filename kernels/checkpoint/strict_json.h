// JSON as checkpoints need it: a key that stands twice in one object is an error, at any depth, because readers differ
// in which of the two they believe. Private to kernels/checkpoint.
#pragma once

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace expertd {

inline constexpr int kMaxJsonDepth = 64;

// InvalidArgument with the reason and the position: not JSON, not UTF-8, bytes after the value, a duplicate key,
// nesting deeper than kMaxJsonDepth.
absl::StatusOr<nlohmann::json> ParseStrictJson(absl::string_view text);

}  // namespace expertd
