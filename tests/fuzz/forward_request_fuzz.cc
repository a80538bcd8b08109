// Any bytes as a request: nothing is read out of bounds, the answer does not depend on how the bytes are sliced, and
// what we accept Protobuf accepts too, with the same sizes.
//
// The first byte says where to cut; the rest is the message.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "expertd/v1/expertd.pb.h"
#include "google/protobuf/stubs/logging.h"
#include "server/codec/f8_rows.h"
#include "server/codec/forward_codec.h"

namespace expertd {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "does not hold: %s\n", what);
  std::abort();
}

bool Same(const ForwardHead& a, const ForwardHead& b) {
  const auto same = [](WireRange x, WireRange y) { return x.offset == y.offset && x.size == y.size; };
  return a.model == b.model && a.layer == b.layer && a.request_id == b.request_id && a.rows == b.rows &&
         a.dtype == b.dtype && a.output_dtype == b.output_dtype && a.shared_expert == b.shared_expert &&
         a.return_routing == b.return_routing && a.timeout_us == b.timeout_us && a.priority == b.priority &&
         a.traceparent == b.traceparent && a.expected_fingerprint == b.expected_fingerprint &&
         a.pre_routed == b.pre_routed && a.k == b.k && same(a.topk_ids, b.topk_ids) &&
         same(a.topk_weights, b.topk_weights) && same(a.hidden_states, b.hidden_states) && same(a.scales, b.scales) &&
         a.scale_block == b.scale_block && a.output_scale_block == b.output_scale_block &&
         a.region.has_value() == b.region.has_value();
}

std::vector<std::byte> Gathered(Slices slices, WireRange range) {
  std::vector<std::byte> out(range.size);
  Gather(slices, range, out.data());
  return out;
}

// The way of an accepted request through the rest of the codec.
void Use(const ForwardHead& head, Slices slices) {
  const LayerSpec spec = {.model = "m", .hidden_size = 2, .num_experts = 4};
  if (!CheckAgainstLayer(head, spec, {.max_rows = 64, .max_k = 4}).ok()) return;
  std::vector<std::byte> rows = Gathered(slices, head.hidden_states);
  DType dtype = head.dtype;
  if (head.dtype == DType::kF8E4M3) {
    dtype = DType::kBF16;
    rows.resize(static_cast<std::size_t>(F8AnswerRoom(head.rows, spec.hidden_size, head.scale_block)));
    const absl::Status decoded = DecodeF8Rows(slices, head.hidden_states, head.scales, head.rows, spec.hidden_size,
                                              head.scale_block, rows.data());
    if (!decoded.ok()) return;
    std::vector<std::byte> again = rows;
    const std::int64_t bytes = EncodeF8Answer(again.data(), head.rows, spec.hidden_size, head.scale_block);
    Require(bytes <= static_cast<std::int64_t>(again.size()), "an answer has room");
  }
  std::int64_t row = -1;
  if (!head.region.has_value() && HasNonFinite(rows.data(), dtype, head.rows, spec.hidden_size, &row)) {
    Require(row >= 0 && row < head.rows, "the row is one of the request's");
  }
  if (!head.pre_routed) return;
  std::vector<std::int32_t> ids(head.rows * head.k);
  std::vector<float> weights(ids.size());
  Gather(slices, head.topk_ids, reinterpret_cast<std::byte*>(ids.data()));
  Gather(slices, head.topk_weights, reinterpret_cast<std::byte*>(weights.data()));
  const absl::Status status = CheckRouting(ids.data(), weights.data(), head.rows, head.k, spec);
  Require(status.ok() || status.code() == absl::StatusCode::kInvalidArgument, "routing is right or the caller's fault");
}

void CheckForward(Slices whole, Slices cut, const std::string& bytes) {
  std::uint64_t id = 0, cut_id = 0;
  bool decodable = false, cut_decodable = false;
  const absl::StatusOr<ForwardHead> head = ScanForwardRequest(whole, &id, &decodable);
  const absl::StatusOr<ForwardHead> cut_head = ScanForwardRequest(cut, &cut_id, &cut_decodable);
  Require(head.status() == cut_head.status() && id == cut_id && decodable == cut_decodable, "slices do not matter");
  if (!head.ok()) return;
  Require(decodable && Same(*head, *cut_head), "slices do not matter");
  v1::ForwardRequest message;
  Require(message.ParseFromString(bytes), "what we accept, Protobuf accepts");
  Require(message.hidden_states().size() == head->hidden_states.size, "the same payload");
  Require(message.request_id() == id, "the same id");
  Use(*cut_head, cut);
}

void CheckStream(Slices whole, Slices cut, const std::string& bytes) {
  std::uint64_t id = 0, cut_id = 0;
  const absl::StatusOr<StreamHead> head = ScanStreamRequest(whole, &id);
  const absl::StatusOr<StreamHead> cut_head = ScanStreamRequest(cut, &cut_id);
  Require(head.status() == cut_head.status() && id == cut_id, "slices do not matter");
  if (!head.ok()) return;
  v1::StreamRequest message;
  Require(message.ParseFromString(bytes), "what we accept, Protobuf accepts");
  Require(message.has_cancel() == head->cancel_request_id.has_value(), "the same kind");
  Require(message.cancel().request_id() == head->cancel_request_id.value_or(0), "the same withdrawal");
}

}  // namespace
}  // namespace expertd

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const google::protobuf::LogSilencer quiet;  // it logs every string that is not UTF-8
  if (size == 0) return 0;
  const std::size_t piece = 1 + data[0] % 8;
  // A copy that ends with the message, so that AddressSanitizer sees a read beyond it.
  const std::vector<char> message(data + 1, data + size);
  const std::vector<absl::string_view> whole = {absl::string_view(message.data(), message.size())};
  std::vector<absl::string_view> cut;
  for (std::size_t at = 0; at < message.size(); at += piece) cut.push_back(whole[0].substr(at, piece));
  const std::string bytes(message.begin(), message.end());
  expertd::CheckForward(whole, cut, bytes);
  expertd::CheckStream(whole, cut, bytes);
  return 0;
}
