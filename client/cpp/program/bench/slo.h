// A service level objective: what "fast enough" means.
#pragma once

#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/program/bench/meter.h"

namespace expertd::client {

struct Slo {
  std::string text;            // as it was given
  double percentile = 0.99;    // (0, 1]
  Nanos limit = 0;             // that this percentile of the latency must not pass
  double failed_share = 1e-3;  // of operations that may fail
};

// "p99=2ms" or "p99.9=800us,errors=0.5%". Units: us, ms, s. InvalidArgument naming the text and the part.
absl::StatusOr<Slo> ParseSlo(absl::string_view text);

// Why a load is more than the server can take; absent: it holds. Asked without an objective, only failures and, in an
// open loop of `offered` operations a second, falling behind (answers for less than 95 %) count.
std::optional<std::string> Violation(const std::optional<Slo>& slo, const Window& measured, double offered);

}  // namespace expertd::client
