// W3C Trace Context, level 1: the traceparent of a request.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace expertd {

struct TraceContext {
  std::array<char, 32> trace_id;  // lower-case hex digits, not all zero
  std::array<char, 16> parent_id;
  bool sampled = false;

  absl::string_view trace() const { return {trace_id.data(), trace_id.size()}; }
  absl::string_view parent() const { return {parent_id.data(), parent_id.size()}; }
};

// Nothing when it is not valid: what the specification tells receivers to do then is to go on without it. Later
// versions are read as far as version 00 goes.
std::optional<TraceContext> ParseTraceparent(absl::string_view text);

}  // namespace expertd
