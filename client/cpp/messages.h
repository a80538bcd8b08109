// Requests and answers whose rows are never copied by this library: a generated message for everything but the rows,
// and reference-counted slices for the rows themselves.
#pragma once

#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/slice.h>
#include <grpcpp/support/status.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "expertd/v1/expertd.pb.h"

namespace expertd::client {

// Rows for one layer. `head` holds every field but hidden_states; `hidden_states` is [rows, D] little-endian row-major
// of head.dtype(), and empty when the head names rows in a region. A slice shares its bytes: it may be sent many times,
// and the bytes must not change while any copy lives.
struct Request {
  v1::ForwardRequest head;
  grpc::Slice hidden_states;
};

// `response` holds everything but result.output; `output` is [rows, D] of result.dtype() in the transport's own pieces.
struct Answer {
  v1::ForwardResponse response;
  std::vector<grpc::Slice> output;
  std::size_t output_bytes = 0;

  const v1::ForwardResult& result() const { return response.result(); }
  // Writes output_bytes bytes.
  void CopyOutput(void* out) const;
  std::string OutputString() const;
};

// InvalidArgument when the request has more rows than the server takes; max_rows 0: any number.
absl::Status CheckRows(const Request& request, std::int64_t max_rows);

// The message that Forward takes, and the one that ForwardStream takes.
grpc::ByteBuffer EncodeForward(const Request& request);
grpc::ByteBuffer EncodeStreamForward(const Request& request);
grpc::ByteBuffer EncodeStreamCancel(std::uint64_t request_id);

// Internal: the bytes are no ForwardResponse. A response that carries an error is an answer too: see ErrorOf.
absl::StatusOr<Answer> DecodeAnswer(grpc::ByteBuffer& message);

// The error that a stream's response carries; ok when it carries a result.
absl::Status ErrorOf(const v1::ForwardResponse& response);

// gRPC's status as ours, with equal codes.
absl::Status FromGrpc(const grpc::Status& status);

// RESOURCE_EXHAUSTED answers say when to try again; a status keeps it as a payload.
void SetRetryAfter(absl::Status& status, std::chrono::microseconds after);
std::optional<std::chrono::microseconds> RetryAfter(const absl::Status& status);

}  // namespace expertd::client
