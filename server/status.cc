#include "server/status.h"

#include <algorithm>
#include <cstdint>
#include <string>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

// The payload is the microseconds in decimal.
constexpr absl::string_view kRetryAfterUrl = "expertd/retry-after-us";

}  // namespace

absl::Status RetryLater(absl::string_view message, std::chrono::microseconds after) {
  absl::Status status = absl::ResourceExhaustedError(message);
  status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(std::max<std::int64_t>(0, after.count()))));
  return status;
}

std::optional<std::chrono::microseconds> RetryAfter(const absl::Status& status) {
  const absl::optional<absl::Cord> payload = status.GetPayload(kRetryAfterUrl);
  if (!payload.has_value()) return std::nullopt;
  std::int64_t microseconds = 0;
  if (!absl::SimpleAtoi(std::string(*payload), &microseconds)) return std::nullopt;
  return std::chrono::microseconds(microseconds);
}

}  // namespace expertd
