// Whether answers given under load are the answers that the same rows get alone, bit for bit.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/load.h"

namespace expertd::client {

struct CheckResult {
  std::int64_t answers = 0;              // compared with their request sent again alone
  std::int64_t rows = 0;                 // single rows compared with a request of that row only
  std::vector<std::string> differences;  // one line each, the first few; empty: all bits are equal
  std::int64_t differing = 0;            // how many comparisons failed
};

// Sends the sampled requests again, one at a time on an otherwise idle client: first as they were, then single rows of
// them. An error when the server does not answer.
absl::StatusOr<CheckResult> CheckSamples(const Client& client, const std::vector<Sample>& samples,
                                         const ShowProgress& show);

}  // namespace expertd::client
