#include "client/cpp/messages.h"

#include <google/protobuf/io/coded_stream.h>
#include <grpcpp/support/proto_buffer_reader.h>

#include <algorithm>
#include <cstring>
#include <limits>

#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace expertd::client {
namespace {

using google::protobuf::io::CodedInputStream;

constexpr char kRetryAfterUrl[] = "expertd.v1/retry_after_us";

constexpr std::uint32_t kLengthDelimited = 2;
constexpr std::uint32_t Tag(int field) { return static_cast<std::uint32_t>(field) << 3 | kLengthDelimited; }

void AppendVarint(std::uint64_t value, std::string& out) {
  for (; value >= 0x80; value >>= 7) out.push_back(static_cast<char>(value | 0x80));
  out.push_back(static_cast<char>(value));
}

// The head and, as the last field, the tag and length of hidden_states: Protobuf messages concatenate. Rows in a region
// are all in the head.
std::string EncodeHead(const Request& request) {
  std::string out = request.head.SerializeAsString();
  if (request.head.has_region()) return out;
  AppendVarint(Tag(v1::ForwardRequest::kHiddenStatesFieldNumber), out);
  AppendVarint(request.hidden_states.size(), out);
  return out;
}

grpc::ByteBuffer Join(const std::string& prefix, const grpc::Slice& payload) {
  const grpc::Slice slices[] = {grpc::Slice(prefix), payload};
  return grpc::ByteBuffer(slices, 2);
}

struct Range {
  std::int64_t begin = 0;
  std::int64_t end = 0;
};

bool SkipValue(CodedInputStream& in, std::uint32_t tag) {
  std::uint64_t varint;
  std::uint32_t length, fixed32;
  switch (tag & 7) {
    case 0:
      return in.ReadVarint64(&varint);
    case 1:
      return in.ReadLittleEndian64(&varint);
    case kLengthDelimited:
      return in.ReadVarint32(&length) && length <= static_cast<std::uint32_t>(std::numeric_limits<int>::max()) &&
             in.Skip(static_cast<int>(length));
    case 5:
      return in.ReadLittleEndian32(&fixed32);
    default:
      return false;  // groups, which no version of this message has had
  }
}

// The places of a field's value among the fields that stand in [current position, end). `whole` starts at its tag.
struct Found {
  bool present = false;
  Range whole;
  Range value;
};

// False when the fields do not end exactly at `end`.
bool FindField(CodedInputStream& in, std::int64_t end, int field, Found& found) {
  while (in.CurrentPosition() < end) {
    const std::int64_t begin = in.CurrentPosition();
    const std::uint32_t tag = in.ReadTag();
    if (tag == 0) return false;
    if (tag != Tag(field)) {
      if (!SkipValue(in, tag)) return false;
      continue;
    }
    std::uint32_t length;
    if (!in.ReadVarint32(&length)) return false;
    const std::int64_t value = in.CurrentPosition();
    if (length > end - value) return false;
    found = {.present = true, .whole = {begin, value + length}, .value = {value, value + length}};
    if (!in.Skip(static_cast<int>(length))) return false;
  }
  return in.CurrentPosition() == end;
}

// `range` of the concatenated slices, shared, not copied.
std::vector<grpc::Slice> SubSlices(const std::vector<grpc::Slice>& slices, Range range) {
  std::vector<grpc::Slice> out;
  std::int64_t at = 0;
  for (const grpc::Slice& slice : slices) {
    const std::int64_t size = static_cast<std::int64_t>(slice.size());
    const std::int64_t begin = std::max(range.begin - at, std::int64_t{0});
    const std::int64_t end = std::min(range.end - at, size);
    if (begin < end) {
      const bool all = begin == 0 && end == size;
      out.push_back(all ? slice : slice.sub(static_cast<std::size_t>(begin), static_cast<std::size_t>(end)));
    }
    at += size;
  }
  return out;
}

void AppendRange(const std::vector<grpc::Slice>& slices, Range range, std::string& out) {
  for (const grpc::Slice& slice : SubSlices(slices, range)) {
    out.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
}

}  // namespace

void Answer::CopyOutput(void* out) const {
  auto* to = static_cast<char*>(out);
  for (const grpc::Slice& slice : output) {
    std::memcpy(to, slice.begin(), slice.size());
    to += slice.size();
  }
}

std::string Answer::OutputString() const {
  std::string out(output_bytes, '\0');
  CopyOutput(out.data());
  return out;
}

absl::Status CheckRows(const Request& request, std::int64_t max_rows) {
  if (max_rows == 0 || request.head.rows() <= max_rows) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("rows: ", request.head.rows(), " are more than the server takes, ", max_rows));
}

grpc::ByteBuffer EncodeForward(const Request& request) { return Join(EncodeHead(request), request.hidden_states); }

grpc::ByteBuffer EncodeStreamForward(const Request& request) {
  const std::string head = EncodeHead(request);
  std::string prefix;
  AppendVarint(Tag(v1::StreamRequest::kForwardFieldNumber), prefix);
  AppendVarint(head.size() + request.hidden_states.size(), prefix);
  prefix += head;
  return Join(prefix, request.hidden_states);
}

grpc::ByteBuffer EncodeStreamCancel(std::uint64_t request_id) {
  v1::StreamRequest message;
  message.mutable_cancel()->set_request_id(request_id);
  const grpc::Slice slice(message.SerializeAsString());
  return grpc::ByteBuffer(&slice, 1);
}

absl::StatusOr<Answer> DecodeAnswer(grpc::ByteBuffer& message) {
  const absl::Status malformed = absl::InternalError("the server's answer is no expertd.v1.ForwardResponse");
  std::vector<grpc::Slice> slices;
  if (!message.Dump(&slices).ok()) return malformed;
  const Range all{0, static_cast<std::int64_t>(message.Length())};

  // Two passes over the structure: where `result` is, and inside it where `output` is.
  Found result, output;
  {
    grpc::ProtoBufferReader reader(&message);
    CodedInputStream in(&reader);
    in.SetTotalBytesLimit(std::numeric_limits<int>::max());
    if (!FindField(in, all.end, v1::ForwardResponse::kResultFieldNumber, result)) return malformed;
  }
  if (result.present) {
    grpc::ProtoBufferReader reader(&message);
    CodedInputStream in(&reader);
    in.SetTotalBytesLimit(std::numeric_limits<int>::max());
    if (!in.Skip(static_cast<int>(result.value.begin))) return malformed;
    if (!FindField(in, result.value.end, v1::ForwardResult::kOutputFieldNumber, output)) return malformed;
  }

  Answer answer;
  std::string rest;
  AppendRange(slices, {all.begin, result.whole.begin}, rest);
  AppendRange(slices, {result.whole.end, all.end}, rest);
  if (!answer.response.ParseFromString(rest)) return malformed;
  if (!result.present) return answer;
  rest.clear();
  if (!output.present) output.whole = {result.value.end, result.value.end};
  AppendRange(slices, {result.value.begin, output.whole.begin}, rest);
  AppendRange(slices, {output.whole.end, result.value.end}, rest);
  if (!answer.response.mutable_result()->ParseFromString(rest)) return malformed;
  answer.output = SubSlices(slices, output.value);
  answer.output_bytes = static_cast<std::size_t>(output.value.end - output.value.begin);
  return answer;
}

absl::Status ErrorOf(const v1::ForwardResponse& response) {
  switch (response.kind_case()) {
    case v1::ForwardResponse::kResult:
      return absl::OkStatus();
    case v1::ForwardResponse::kError: {
      const v1::Error& error = response.error();
      absl::Status status(static_cast<absl::StatusCode>(error.code()), error.message());
      if (status.ok()) return absl::InternalError("the server's answer is an error without a code");
      if (error.retry_after_us() != 0) SetRetryAfter(status, std::chrono::microseconds(error.retry_after_us()));
      return status;
    }
    case v1::ForwardResponse::KIND_NOT_SET:
      break;
  }
  return absl::InternalError("the server's answer is neither a result nor an error");
}

absl::Status FromGrpc(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void SetRetryAfter(absl::Status& status, std::chrono::microseconds after) {
  status.SetPayload(kRetryAfterUrl, absl::Cord(absl::StrCat(after.count())));
}

std::optional<std::chrono::microseconds> RetryAfter(const absl::Status& status) {
  const auto payload = status.GetPayload(kRetryAfterUrl);
  std::int64_t us = 0;
  if (!payload.has_value() || !absl::SimpleAtoi(std::string(*payload), &us)) return std::nullopt;
  return std::chrono::microseconds(us);
}

}  // namespace expertd::client
