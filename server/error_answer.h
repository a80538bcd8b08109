// How a request's error is answered inside a message.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "server/codec/forward_codec.h"
#include "server/status.h"

namespace expertd {

// A whole ForwardResponse, with the retry hint that the status carries.
inline std::string EncodeError(std::uint64_t request_id, const absl::Status& status) {
  const std::optional<std::chrono::microseconds> after = RetryAfter(status);
  return EncodeErrorResponse(request_id, status, after ? static_cast<std::uint64_t>(after->count()) : 0);
}

}  // namespace expertd
