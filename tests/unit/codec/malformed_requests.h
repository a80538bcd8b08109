// ForwardRequests that every server must refuse, each with the exact answer: data for the codec's own tests and for
// tests over a socket.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace expertd {

// A layer that is served, and the limits that it is served with.
struct MalformedTarget {
  std::string model;
  std::uint32_t layer = 0;
  std::int64_t hidden_size = 0;  // D >= 1
  std::int64_t num_experts = 0;  // E >= 2
  std::int64_t max_rows = 0;     // per request, >= 3
  std::int64_t max_k = 0;        // >= 2
};

inline constexpr std::uint64_t kMalformedRequestId = 77;

struct MalformedRequest {
  std::string name;   // [a-z0-9_]
  std::string bytes;  // a serialised ForwardRequest, more or less
  absl::StatusCode code = absl::StatusCode::kInvalidArgument;
  std::string message;
  // False: on a stream the call ends, and the message speaks of StreamRequest and its own byte positions.
  bool decodable = true;
  // What a stream's answer carries: kMalformedRequestId, or 0 where it cannot be read.
  std::uint64_t request_id = kMalformedRequestId;
};

// In a fixed order; names are unique.
std::vector<MalformedRequest> MalformedRequests(const MalformedTarget& target);

// Requests of three bf16 rows that must be accepted, with an unknown field of every kind.
std::string ValidServerRoutedRequest(const MalformedTarget& target);
std::string ValidPreRoutedRequest(const MalformedTarget& target);

// The StreamRequest that carries a ForwardRequest.
std::string AsStreamRequest(const std::string& forward_request);

}  // namespace expertd
