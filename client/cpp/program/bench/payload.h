// Random rows and routing to send.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/messages.h"

namespace expertd::client {

// Who chooses the experts. Absent: the server. Otherwise the caller, each row's K distinct experts drawn with Zipf's
// weights of this exponent over the experts in a random order of the layer's own; 0: all alike.
using ExpertSkew = std::optional<double>;

// "server", "uniform" or "zipf:EXPONENT".
absl::StatusOr<ExpertSkew> ParseRouting(absl::string_view text);

// A pool of rows for some layers, from which requests of any size are cut without copying the rows.
class Payloads {
 public:
  // Normally distributed bf16 rows, at least `most_rows` of them; layers of one hidden size share them. Chosen experts
  // have positive weights that sum to 1. Equal arguments give equal rows.
  Payloads(const std::vector<v1::Layer>& layers, std::int64_t most_rows, ExpertSkew skew, std::uint64_t seed);

  std::int64_t rows() const { return rows_; }

  // Rows [first, first + count) of the pool for layer `layer` of the constructor's; first + count <= rows().
  Request Make(std::size_t layer, std::int64_t first, std::int64_t count) const;

 private:
  struct Experts {
    std::size_t k = 0;
    std::string ids, weights;  // i32 and f32 [rows, k]
  };

  std::vector<v1::ForwardRequest> heads_;  // one a layer: all that its requests share
  std::vector<grpc::Slice> values_;        // likewise: [rows, hidden size] bf16
  std::vector<Experts> experts_;           // likewise; empty when the server routes
  std::int64_t rows_;
};

// One request of `rows` rows; with `pre_routed` also with random experts, all alike. Equal arguments give equal
// requests.
Request RandomRequest(const v1::Layer& layer, std::int64_t rows, bool pre_routed, std::uint64_t seed);

// Row `row` of a request as a request of its own: the same options, its own rows and routing.
Request OneRow(const Request& request, std::int64_t row);

}  // namespace expertd::client
