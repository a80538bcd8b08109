// Errors as callers see them.
#pragma once

#include <chrono>
#include <optional>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace expertd {

// ResourceExhausted (always transient) with the time after which trying again is worth it.
absl::Status RetryLater(absl::string_view message, std::chrono::microseconds after);
std::optional<std::chrono::microseconds> RetryAfter(const absl::Status& status);

}  // namespace expertd
