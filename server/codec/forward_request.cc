// The rules of ForwardRequest, Routing, Cancel and StreamRequest; the numbers are expertd.proto's.
#include <limits>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/codec/forward_codec.h"
#include "server/codec/message_scan.h"
#include "server/codec/utf8.h"
#include "server/codec/wire_reader.h"

namespace expertd {
namespace {

constexpr std::uint64_t kMaxModelBytes = 256;
constexpr std::uint64_t kMaxTraceparentBytes = 64;
constexpr std::uint64_t kMaxFingerprintBytes = 128;
constexpr std::uint64_t kMaxPriority = 9;
constexpr std::uint64_t kScaleBlock = 128;

struct WireDType {
  std::uint64_t number;
  DType dtype;
};
constexpr WireDType kWireDTypes[] = {{1, DType::kBF16}, {2, DType::kF32}, {3, DType::kF8E4M3}};
constexpr absl::string_view kGiveDType = "give DTYPE_BF16, DTYPE_F32 or DTYPE_F8_E4M3";

// Protobuf's own parsers cut a number to its field's width; a layer or a row count that was cut would be another one.
template <class Unsigned>
void TakeUnsigned(const FieldValue& field, Scan* scan, Unsigned* out) {
  if (field.number > std::numeric_limits<Unsigned>::max()) {
    scan->Refuse(field.name, field.number, " is above ", std::numeric_limits<Unsigned>::max());
  } else {
    *out = static_cast<Unsigned>(field.number);
  }
}

void TakeRows(const FieldValue& field, Scan* scan) {
  scan->head.forward.rows = static_cast<std::int64_t>(field.number);  // two's complement on the wire
  if (scan->head.forward.rows < 0) scan->Refuse(field.name, scan->head.forward.rows, " is negative");
}

void TakePriority(const FieldValue& field, Scan* scan) {
  if (field.number > kMaxPriority) return scan->Refuse(field.name, field.number, " is not in 0..", kMaxPriority);
  scan->head.forward.priority = static_cast<int>(field.number);
}

void TakeK(const FieldValue& field, Scan* scan) {
  std::uint32_t k = 0;
  TakeUnsigned(field, scan, &k);
  scan->head.forward.k = k;
}

template <class Optional>
void TakeDType(const FieldValue& field, Scan* scan, Optional* out) {
  if (field.number == 0) return scan->Refuse(field.name, "DTYPE_UNSPECIFIED is refused, ", kGiveDType);
  for (const WireDType& known : kWireDTypes) {
    if (known.number != field.number) continue;
    *out = known.dtype;
    return;
  }
  scan->Refuse(field.name, static_cast<std::int64_t>(field.number), " is no DType that this server knows, ",
               kGiveDType);
}

void TakeScaleBlock(const FieldValue& field, Scan* scan, std::int64_t* out) {
  if (field.number != 0 && field.number != kScaleBlock) {
    return scan->Refuse(field.name, field.number, " is neither ", kScaleBlock, " nor 0 (the whole row)");
  }
  *out = static_cast<std::int64_t>(field.number);
}

void TakeString(const FieldValue& field, std::uint64_t max_bytes, Scan* scan, std::string* out) {
  if (field.number > max_bytes) return scan->Refuse(field.name, field.number, " bytes, at most ", max_bytes);
  out->resize(field.number);
  WireReader bytes = field.bytes;
  bytes.Read(reinterpret_cast<std::byte*>(out->data()), field.number);  // there: their length was checked
  const std::size_t valid = ValidUtf8Prefix(*out);
  if (valid != out->size()) scan->Refuse(field.name, "not UTF-8 from byte ", valid);
}

void TakeModel(const FieldValue& field, Scan* scan) {
  if (field.number == 0) return scan->Refuse(field.name, "empty");
  TakeString(field, kMaxModelBytes, scan, &scan->head.forward.model);
}

WireRange RangeOf(const FieldValue& field) { return {field.bytes.position(), field.number}; }

constexpr FieldRule kRouting[] = {
    {1, WireType::kVarint, "routing.k", TakeK},
    {2, WireType::kBytes, "topk_ids", [](auto& field, Scan* s) { s->head.forward.topk_ids = RangeOf(field); }},
    {3, WireType::kBytes, "topk_weights", [](auto& field, Scan* s) { s->head.forward.topk_weights = RangeOf(field); }},
};

constexpr FieldRule kRegionRows[] = {
    {1, WireType::kVarint, "region.handle",
     [](auto& field, Scan* s) { s->head.forward.region->handle = field.number; }},
    {2, WireType::kVarint, "region.input_offset",
     [](auto& field, Scan* s) { s->head.forward.region->input_offset = field.number; }},
    {3, WireType::kVarint, "region.output_offset",
     [](auto& field, Scan* s) { s->head.forward.region->output_offset = field.number; }},
};

constexpr FieldRule kForwardRequest[] = {
    {.number = 1, .type = WireType::kBytes, .name = "model", .take = TakeModel, .required = true},
    {2, WireType::kVarint, "layer", [](auto& field, Scan* s) { TakeUnsigned(field, s, &s->head.forward.layer); }},
    {3, WireType::kVarint, "request_id", [](auto& field, Scan* s) { s->head.forward.request_id = field.number; }},
    {4, WireType::kVarint, "rows", TakeRows},
    {.number = 5,
     .type = WireType::kVarint,
     .name = "dtype",
     .take = [](auto& field, Scan* s) { TakeDType(field, s, &s->head.forward.dtype); },
     .required = true},
    {6, WireType::kVarint, "output_dtype", [](auto& field, Scan* s) { TakeDType(field, s, &s->output_dtype); }},
    {7, WireType::kVarint, "shared_expert",
     [](auto& field, Scan* s) { s->head.forward.shared_expert = field.number != 0; }},
    {8, WireType::kVarint, "return_routing",
     [](auto& field, Scan* s) { s->head.forward.return_routing = field.number != 0; }},
    {9, WireType::kVarint, "timeout_us", [](auto& field, Scan* s) { s->head.forward.timeout_us = field.number; }},
    {10, WireType::kVarint, "priority", TakePriority},
    {11, WireType::kBytes, "traceparent",
     [](auto& field, Scan* s) { TakeString(field, kMaxTraceparentBytes, s, &s->head.forward.traceparent); }},
    {12, WireType::kBytes, "expected_fingerprint",
     [](auto& field, Scan* s) { TakeString(field, kMaxFingerprintBytes, s, &s->head.forward.expected_fingerprint); }},
    {13, WireType::kBytes, "routing", [](auto&, Scan* s) { s->head.forward.pre_routed = true; }, kRouting},
    {.number = 20,
     .type = WireType::kBytes,
     .name = "hidden_states",
     .take = [](auto& field, Scan* s) { s->head.forward.hidden_states = RangeOf(field); },
     .required = true,
     .oneof = "payload"},
    {14, WireType::kVarint, "scale_block",
     [](auto& field, Scan* s) { TakeScaleBlock(field, s, &s->head.forward.scale_block); }},
    {15, WireType::kVarint, "output_scale_block",
     [](auto& field, Scan* s) { TakeScaleBlock(field, s, &s->head.forward.output_scale_block); }},
    {19, WireType::kBytes, "scales", [](auto& field, Scan* s) { s->head.forward.scales = RangeOf(field); }},
    {21, WireType::kBytes, "region", [](auto&, Scan* s) { s->head.forward.region.emplace(); }, kRegionRows,
     /*required=*/true, "payload"},
};

constexpr FieldRule kCancel[] = {
    {1, WireType::kVarint, "cancel.request_id", [](auto& field, Scan* s) { s->head.cancel_request_id = field.number; }},
};

constexpr FieldRule kStreamRequest[] = {
    {1, WireType::kBytes, "forward", [](auto&, Scan*) {}, kForwardRequest, /*required=*/true, "kind"},
    {2, WireType::kBytes, "cancel", [](auto&, Scan* s) { s->head.cancel_request_id = 0; }, kCancel, /*required=*/true,
     "kind"},
};

absl::StatusOr<StreamHead> ScanWhole(absl::string_view message, absl::Span<const FieldRule> rules, Slices slices,
                                     std::uint64_t* request_id, bool* decodable) {
  Scan scan;
  WireReader reader(slices);
  const bool decoded = ScanMessage(rules, &reader, &scan);
  if (request_id != nullptr) *request_id = decoded ? scan.head.forward.request_id : 0;
  if (decodable != nullptr) *decodable = decoded;
  if (!decoded) {
    return absl::InvalidArgumentError(absl::StrCat(message, ": not decodable: ", reader.status().message()));
  }
  if (!scan.refusal.ok()) return scan.refusal;
  scan.head.forward.output_dtype = scan.output_dtype.value_or(scan.head.forward.dtype);
  return std::move(scan.head);
}

}  // namespace

absl::StatusOr<ForwardHead> ScanForwardRequest(Slices slices, std::uint64_t* request_id, bool* decodable) {
  absl::StatusOr<StreamHead> head = ScanWhole("ForwardRequest", kForwardRequest, slices, request_id, decodable);
  if (!head.ok()) return head.status();
  return std::move(head->forward);
}

absl::StatusOr<StreamHead> ScanStreamRequest(Slices slices, std::uint64_t* request_id, bool* decodable) {
  return ScanWhole("StreamRequest", kStreamRequest, slices, request_id, decodable);
}

void Gather(Slices slices, WireRange range, std::byte* out) {
  WireReader reader(slices);
  if (reader.Skip(range.offset)) reader.Read(out, range.size);
}

}  // namespace expertd
