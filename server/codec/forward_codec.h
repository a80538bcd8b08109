// ForwardRequest and ForwardResponse on the wire, without generated message classes: a request's rows are copied once,
// from the transport's slices straight into a row buffer, and a response refers to the rows where they lie.
//
// Knows no gRPC: slices are spans of bytes. Reading is two passes: Scan validates every field before anything is
// allocated, then Gather copies a field's bytes out.
//
// What Protobuf's own parser accepts is accepted, with the same values, less this:
// - a non-repeated field given twice, two members of a oneof, a known field with another field's wire type;
// - no model, dtype, payload or kind; DTYPE_UNSPECIFIED or an unknown DType; negative rows; a priority above 9; a scale
//   block other than 0 and 128;
// - model above 256 bytes, traceparent above 64, expected_fingerprint above 128;
// - numbers that do not fit their field (Protobuf cuts them), tags and varints with more than 32 and 64 bits, unknown
//   groups more than 32 deep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"
#include "kernels/engine.h"
#include "kernels/routing_check.h"
#include "kernels/tensor.h"

namespace expertd {

// The message as the transport holds it: slices in order. Views only.
using Slices = absl::Span<const absl::string_view>;

// A bytes field inside the slices: `size` bytes from `offset` of their concatenation.
struct WireRange {
  std::uint64_t offset = 0;
  std::uint64_t size = 0;
};

// Rows in shared memory, as byte offsets into a session's region.
struct RegionRows {
  std::uint64_t handle = 0;
  std::uint64_t input_offset = 0;
  std::uint64_t output_offset = 0;
};

// A ForwardRequest's fields as scanned: present and well-formed, sizes not yet held against a layer.
struct ForwardHead {
  std::string model;
  std::uint32_t layer = 0;
  std::uint64_t request_id = 0;
  std::int64_t rows = 0;
  DType dtype = DType::kBF16;         // kBF16, kF32 or kF8E4M3
  DType output_dtype = DType::kBF16;  // likewise
  std::optional<bool> shared_expert;
  bool return_routing = false;
  std::uint64_t timeout_us = 0;
  int priority = 0;
  std::string traceparent;
  std::string expected_fingerprint;
  bool pre_routed = false;
  std::int64_t k = 0;
  WireRange topk_ids;
  WireRange topk_weights;
  WireRange hidden_states;
  std::optional<RegionRows> region;  // in place of hidden_states
  std::int64_t scale_block = 0;      // elements that share a scale; 0: the whole row
  std::int64_t output_scale_block = 0;
  WireRange scales;
};

// A stream's message: a request, or the withdrawal of one.
struct StreamHead {
  std::optional<std::uint64_t> cancel_request_id;
  ForwardHead forward;
};

// InvalidArgument naming field, value and limit. `request_id`, when not null, receives the id also of a request that is
// refused (0 when it could not be read), so that a stream can answer it. `decodable`, when not null, is false when the
// bytes are no Protobuf message at all: on a stream that is the only error that ends the call.
absl::StatusOr<ForwardHead> ScanForwardRequest(Slices slices, std::uint64_t* request_id = nullptr,
                                               bool* decodable = nullptr);
absl::StatusOr<StreamHead> ScanStreamRequest(Slices slices, std::uint64_t* request_id = nullptr,
                                             bool* decodable = nullptr);

struct ForwardLimits {
  std::int64_t max_rows = 0;  // per request
  std::int64_t max_k = 0;
};

// Holds the head against its layer: rows, k, and that every bytes field has exactly the size that the shapes demand,
// with checked arithmetic; of a region's rows only the element types. InvalidArgument as above.
absl::Status CheckAgainstLayer(const ForwardHead& head, const LayerSpec& spec, const ForwardLimits& limits);

// Copies a field's bytes to `out`, which has room for range.size bytes.
void Gather(Slices slices, WireRange range, std::byte* out);

// Everything of a ForwardResponse but the output's bytes.
struct ResponseHead {
  std::uint64_t request_id = 0;
  std::int64_t rows = 0;
  DType dtype = DType::kBF16;
  double decode = 0, queue = 0, total = 0;  // seconds
  StageTimes stages;
  std::int64_t batch_rows = 0;
  std::int64_t batch_requests = 0;
  absl::string_view fingerprint;
  std::int64_t k = 0;  // > 0: routing is returned
  const std::int32_t* topk_ids = nullptr;
  const float* topk_weights = nullptr;
  std::int64_t scales_bytes = 0;  // > 0: the output is e4m3, see f8_rows.h
};

// The bytes of a ForwardResponse up to and including the length of `output`; exactly output_bytes bytes must follow,
// and behind them, where there are scales, the whole field that holds them.
std::string EncodeResponsePrefix(const ResponseHead& head, std::uint64_t output_bytes);

// A whole ForwardResponse that carries an error, for streams.
std::string EncodeErrorResponse(std::uint64_t request_id, const absl::Status& status, std::uint64_t retry_after_us);

}  // namespace expertd
