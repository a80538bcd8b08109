#include "tests/unit/codec/malformed_requests.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "tests/unit/codec/raw_message.h"

namespace expertd {
namespace {

constexpr std::int64_t kRows = 3;
constexpr std::int64_t kK = 2;
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

// expertd.proto's numbers.
enum Field : std::uint32_t {
  kModel = 1,
  kLayer,
  kRequestId,
  kRowCount,
  kDType,
  kOutputDType,
  kSharedExpert,
  kReturnRouting,
  kTimeoutUs,
  kPriority,
  kTraceparent,
  kFingerprint,
  kRouting,
  kScaleBlock,
  kOutputScaleBlock,
  kScales = 19,
  kHiddenStates,
  kRegion,
};
enum RoutingField : std::uint32_t { kRoutingK = 1, kTopkIds, kTopkWeights };
constexpr std::uint32_t kUnknown = 1000;

template <class T>
std::string BytesOfValues(const std::vector<T>& values) {
  return std::string(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
}

RawMessage Routing(const std::vector<std::int32_t>& ids, const std::vector<float>& weights) {
  return {{RawNumber(kRoutingK, kK), RawBytes(kTopkIds, BytesOfValues(ids)),
           RawBytes(kTopkWeights, BytesOfValues(weights))}};
}

RawMessage ValidRouting() { return Routing({0, 1, 1, -1, -1, -1}, {0.5f, 0.5f, 1.0f, 0.0f, 0.0f, -2.0f}); }

std::string Rows(const MalformedTarget& target) { return std::string(kRows * target.hidden_size * 2, '\x3f'); }

// With every field, so that each can be dropped, replaced or repeated. Bytes last, as our writers do.
RawMessage ValidRequest(const MalformedTarget& target) {
  return {{RawBytes(kModel, target.model), RawNumber(kLayer, target.layer), RawNumber(kRequestId, kMalformedRequestId),
           RawNumber(kRowCount, kRows), RawNumber(kDType, 1), RawNumber(kOutputDType, 2), RawNumber(kSharedExpert, 0),
           RawNumber(kReturnRouting, 1), RawNumber(kTimeoutUs, 10'000'000), RawNumber(kPriority, 9),
           RawBytes(kTraceparent, "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
           RawBytes(kRouting, ValidRouting().Bytes()), RawBytes(kHiddenStates, Rows(target))}};
}

RawMessage WithUnknownFields(const RawMessage& request) {
  const std::string inner = RawNumber(1, 7).bytes + RawFixed32(2).bytes + RawGroup(3, RawBytes(4, "abc").bytes).bytes;
  return request.Plus(RawNumber(kUnknown, ~std::uint64_t{0}))
      .Plus(RawFixed64(kUnknown))
      .Plus(RawBytes(kUnknown, "unknown"))
      .Plus(RawGroup(kUnknown, inner))
      .Plus(RawFixed32(kUnknown));
}

// Collects the cases; all of them start from the same valid request.
class Cases {
 public:
  explicit Cases(const MalformedTarget& target) : target(target), valid(ValidRequest(target)) {}

  const MalformedTarget& target;
  const RawMessage valid;
  std::vector<MalformedRequest> all;

  void Refused(std::string name, const RawMessage& request, std::string message,
               std::uint64_t request_id = kMalformedRequestId) {
    all.push_back({std::move(name), request.Bytes(), absl::StatusCode::kInvalidArgument, std::move(message),
                   /*decodable=*/true, request_id});
  }
  // A field of the request, or of its routing, replaced.
  void Field(std::string name, RawField field, std::string message) {
    Refused(std::move(name), valid.With(std::move(field)), std::move(message));
  }
  void Routing(std::string name, const RawMessage& routing, std::string message) {
    Field(std::move(name), RawBytes(kRouting, routing.Bytes()), std::move(message));
  }
  // The valid request followed by `tail`, `at` bytes of which can be read before it is clear that nothing can.
  void Undecodable(std::string name, const std::string& tail, const std::string& why, std::size_t at) {
    const std::string head = valid.Bytes();
    AddUndecodable(std::move(name), head + tail, why, head.size() + at);
  }
  void AddUndecodable(std::string name, std::string bytes, const std::string& why, std::size_t at) {
    all.push_back({std::move(name), std::move(bytes), absl::StatusCode::kInvalidArgument,
                   absl::StrCat("ForwardRequest: not decodable: ", why, " at byte ", at), /*decodable=*/false,
                   /*request_id=*/0});
  }
};

void AddTruncated(Cases& c) {
  const std::string tag = RawTag(kUnknown, 0);  // two bytes
  c.Undecodable("cut_in_a_tag", tag.substr(0, 1), "truncated: 1 bytes wanted, 0 left", 1);
  c.Undecodable("cut_behind_a_tag", tag, "truncated: 1 bytes wanted, 0 left", 2);
  c.Undecodable("cut_in_a_number", tag + "\x80\x80", "truncated: 1 bytes wanted, 0 left", 4);
  c.Undecodable("cut_in_a_length", RawTag(kUnknown, 2) + "\xff", "truncated: 1 bytes wanted, 0 left", 3);
  c.Undecodable("cut_in_32_bits", RawTag(kUnknown, 5) + "abc", "truncated: 4 bytes wanted, 3 left", 2);
  c.Undecodable("cut_in_64_bits", RawTag(kUnknown, 1) + "abcdefg", "truncated: 8 bytes wanted, 7 left", 2);
  c.Undecodable("cut_in_a_group", RawTag(kUnknown, 3) + RawNumber(1, 1).bytes, "truncated: 1 bytes wanted, 0 left", 4);
  c.Undecodable("unknown_bytes_beyond_the_end", RawTag(kUnknown, 2) + RawVarint(1000) + "abc",
                "truncated: 1000 bytes wanted, 3 left", 4);
  c.Undecodable("unknown_bytes_of_2_gib", RawTag(kUnknown, 2) + RawVarint(0x7fffffff),
                "truncated: 2147483647 bytes wanted, 0 left", 7);

  std::string cut = c.valid.Bytes();
  const std::size_t payload = Rows(c.target).size();
  cut.pop_back();
  c.AddUndecodable("hidden_states_cut", cut,
                   absl::StrCat("truncated: ", payload, " bytes wanted, ", payload - 1, " left"),
                   cut.size() + 1 - payload);
  c.AddUndecodable("model_beyond_the_end", RawTag(kModel, 2) + RawVarint(4) + "abc",
                   "truncated: 4 bytes wanted, 3 left", 2);
  // The routing's length says 3, its topk_ids 4: the request's own end is far, the routing's is not.
  c.Undecodable("topk_ids_beyond_their_message",
                RawBytes(kRouting, RawTag(kTopkIds, 2) + RawVarint(4) + "a").bytes + RawNumber(kUnknown, 0).bytes,
                "truncated: 4 bytes wanted, 1 left", 4);
}

void AddNoMessage(Cases& c) {
  const std::string nine_full(9, '\xff');
  c.AddUndecodable("all_ones", std::string(64, '\xff'), "tag of more than 32 bits", 5);
  c.Undecodable("tag_of_33_bits", "\xff\xff\xff\xff\x1f", "tag of more than 32 bits", 5);
  c.Undecodable("tag_of_six_bytes", "\x80\x80\x80\x80\x80\x01", "tag of more than 32 bits", 5);
  c.Undecodable("number_of_65_bits", RawTag(kUnknown, 0) + nine_full + "\x02", "number of more than 64 bits", 12);
  c.Undecodable("number_of_eleven_bytes", RawTag(kUnknown, 0) + nine_full + "\x81\x01", "number of more than 64 bits",
                12);
  c.Undecodable("request_id_of_65_bits", RawTag(kRequestId, 0) + nine_full + "\x7f", "number of more than 64 bits", 11);
  c.Undecodable("length_of_32_bits", RawTag(kUnknown, 2) + RawVarint(0x80000000u), "length of more than 31 bits", 7);
  c.Undecodable("length_of_64_bits", RawTag(kHiddenStates, 2) + RawVarint(~std::uint64_t{0}),
                "length of more than 31 bits", 7);
  c.Undecodable("field_number_0", RawNumber(0, 1).bytes, "field number 0", 1);
  c.Undecodable("field_number_0_as_bytes", RawBytes(0, "abc").bytes, "field number 0", 1);
  c.Undecodable("wire_type_6", RawTag(kUnknown, 6), "wire type 6 of field 1000", 2);
  c.Undecodable("wire_type_7", RawTag(kModel, 7), "wire type 7 of field 1", 1);
  c.Undecodable("wire_type_6_in_routing", RawBytes(kRouting, RawTag(9, 6)).bytes, "wire type 6 of field 9", 3);
  c.Undecodable("group_ends_unbegun", RawTag(kUnknown, 4), "end of group 1000 without a beginning", 2);
  c.Undecodable("group_ends_in_routing", RawBytes(kRouting, RawTag(5, 4)).bytes, "end of group 5 without a beginning",
                3);
  c.Undecodable("group_ends_as_another", RawTag(8, 3) + RawTag(9, 4), "end of group 9 inside group 8", 2);
  c.Undecodable("group_of_wire_type_7", RawTag(8, 3) + RawTag(9, 7), "wire type 7 of field 9", 2);
  std::string groups;
  for (int depth = 0; depth < 33; ++depth) groups += RawTag(8, 3);
  for (int depth = 0; depth < 33; ++depth) groups += RawTag(8, 4);
  c.Undecodable("groups_33_deep", groups, "groups nested more than 32 deep", 33);
}

struct KnownField {
  std::uint32_t number;
  const char* name;
  bool bytes;
};
constexpr KnownField kRequestFields[] = {
    {kModel, "model", true},
    {kLayer, "layer", false},
    {kRequestId, "request_id", false},
    {kRowCount, "rows", false},
    {kDType, "dtype", false},
    {kOutputDType, "output_dtype", false},
    {kSharedExpert, "shared_expert", false},
    {kReturnRouting, "return_routing", false},
    {kTimeoutUs, "timeout_us", false},
    {kPriority, "priority", false},
    {kTraceparent, "traceparent", true},
    {kFingerprint, "expected_fingerprint", true},
    {kRouting, "routing", true},
    {kHiddenStates, "hidden_states", true},
};
constexpr KnownField kRoutingFields[] = {
    {kRoutingK, "k", false}, {kTopkIds, "topk_ids", true}, {kTopkWeights, "topk_weights", true}};

// A field as its opposite, and as each of the types that no field of ours has.
void AddWireTypes(Cases& c) {
  for (const KnownField& field : kRequestFields) {
    const std::uint64_t id = field.number == kRequestId ? 0 : kMalformedRequestId;
    const std::string must = absl::StrCat(", must be ", field.bytes ? "length-delimited" : "varint");
    c.Refused(absl::StrCat(field.name, "_of_other_type"),
              c.valid.With(field.bytes ? RawNumber(field.number, 1) : RawBytes(field.number, "\x01")),
              absl::StrCat(field.name, ": wire type is ", field.bytes ? "varint" : "length-delimited", must), id);
    c.Refused(absl::StrCat(field.name, "_as_32_bits"), c.valid.With(RawFixed32(field.number)),
              absl::StrCat(field.name, ": wire type is 32-bit", must), id);
  }
  c.Field("rows_as_64_bits", RawFixed64(kRowCount), "rows: wire type is 64-bit, must be varint");
  c.Field("routing_as_group", RawGroup(kRouting, ValidRouting().Bytes()),
          "routing: wire type is group, must be length-delimited");
  c.Routing("k_of_other_type", ValidRouting().With(RawBytes(kRoutingK, "\x02")),
            "routing.k: wire type is length-delimited, must be varint");
  c.Routing("topk_ids_of_other_type", ValidRouting().With(RawNumber(kTopkIds, 1)),
            "topk_ids: wire type is varint, must be length-delimited");
  c.Routing("topk_weights_of_other_type", ValidRouting().With(RawFixed32(kTopkWeights)),
            "topk_weights: wire type is 32-bit, must be length-delimited");
}

void AddTwice(Cases& c) {
  const RawMessage all = c.valid.Plus(RawBytes(kFingerprint, "0123456789abcdef"));
  for (const KnownField& field : kRequestFields) {
    for (const RawField& given : all.fields) {
      if (given.number != field.number) continue;
      c.Refused(absl::StrCat(field.name, "_twice"), all.Plus(given), absl::StrCat(field.name, ": given twice"));
    }
  }
  for (const KnownField& field : kRoutingFields) {
    const std::string name = field.number == kRoutingK ? "routing.k" : field.name;
    for (const RawField& given : ValidRouting().fields) {
      if (given.number != field.number) continue;
      c.Routing(absl::StrCat("routing_", field.name, "_twice"), ValidRouting().Plus(given), name + ": given twice");
    }
  }
}

void AddMissing(Cases& c) {
  c.Refused("nothing", {}, "model: missing", 0);
  c.Refused("only_unknown_fields", WithUnknownFields({}), "model: missing", 0);
  c.Refused("model_missing", c.valid.Without(kModel), "model: missing");
  c.Refused("dtype_missing", c.valid.Without(kDType), "dtype: missing");
  c.Refused("payload_missing", c.valid.Without(kHiddenStates), "payload: missing");
  c.Refused("payload_missing_for_zero_rows",
            c.valid.With(RawNumber(kRowCount, 0)).Without(kHiddenStates).Without(kRouting), "payload: missing");
}

void AddStrings(Cases& c) {
  c.Field("model_empty", RawBytes(kModel, ""), "model: empty");
  c.Field("model_of_257_bytes", RawBytes(kModel, std::string(257, 'm')), "model: 257 bytes, at most 256");
  c.Field("model_not_utf8", RawBytes(kModel, "ab\xff"), "model: not UTF-8 from byte 2");
  c.Field("model_overlong_utf8", RawBytes(kModel, "\xc0\xaf"), "model: not UTF-8 from byte 0");
  c.Field("model_surrogate", RawBytes(kModel, "m\xed\xa0\x80"), "model: not UTF-8 from byte 1");
  c.Field("model_cut_character", RawBytes(kModel, "m\xe2\x82"), "model: not UTF-8 from byte 1");
  c.Field("traceparent_of_65_bytes", RawBytes(kTraceparent, std::string(65, '0')), "traceparent: 65 bytes, at most 64");
  c.Field("traceparent_not_utf8", RawBytes(kTraceparent, "\xf5"), "traceparent: not UTF-8 from byte 0");
  c.Field("fingerprint_of_129_bytes", RawBytes(kFingerprint, std::string(129, '0')),
          "expected_fingerprint: 129 bytes, at most 128");
  c.Field("fingerprint_not_utf8", RawBytes(kFingerprint, "0\x80"), "expected_fingerprint: not UTF-8 from byte 1");
}

// Rows that travel in another way than as they are computed.
void AddOtherRows(Cases& c) {
  const RawMessage place = {{RawNumber(1, 7), RawNumber(2, 0), RawNumber(3, 64)}};
  c.Refused("region_beside_hidden_states", c.valid.Plus(RawBytes(kRegion, place.Bytes())),
            "region: given beside another payload");
  const RawMessage in_region = c.valid.Without(kHiddenStates);
  c.Refused("region_handle_of_other_type", in_region.Plus(RawBytes(kRegion, RawFixed64(1).bytes)),
            "region.handle: wire type is 64-bit, must be varint");
  c.Refused("region_offset_twice", in_region.Plus(RawBytes(kRegion, place.Plus(RawNumber(3, 64)).Bytes())),
            "region.output_offset: given twice");
  c.Refused("region_of_e4m3_rows", in_region.With(RawNumber(kOutputDType, 3)).Plus(RawBytes(kRegion, place.Bytes())),
            "output_dtype: rows in a region are bf16 or f32, not e4m3");
  c.Refused("scale_block_64", c.valid.Plus(RawNumber(kScaleBlock, 64)),
            "scale_block: 64 is neither 128 nor 0 (the whole row)");
  c.Refused("scales_of_bf16_rows", c.valid.Plus(RawBytes(kScales, "abcd")),
            "scales: 4 is given, but dtype is bf16, which has no scales");
  c.Refused("output_scale_block_of_f32_rows", c.valid.Plus(RawNumber(kOutputScaleBlock, 128)),
            "output_scale_block: 128 is given, but output_dtype is f32, which has no scales");
}

void AddNumbers(Cases& c) {
  constexpr std::uint64_t kMinusOne = ~std::uint64_t{0};
  constexpr std::uint64_t kTwo32 = std::uint64_t{1} << 32;
  c.Field("layer_of_33_bits", RawNumber(kLayer, kTwo32), "layer: 4294967296 is above 4294967295");
  c.Field("layer_negative", RawNumber(kLayer, kMinusOne), "layer: 18446744073709551615 is above 4294967295");
  c.Field("rows_negative", RawNumber(kRowCount, kMinusOne), "rows: -1 is negative");
  c.Field("rows_least", RawNumber(kRowCount, std::uint64_t{1} << 63), "rows: -9223372036854775808 is negative");
  const std::string give = "give DTYPE_BF16, DTYPE_F32 or DTYPE_F8_E4M3";
  c.Field("dtype_unspecified", RawNumber(kDType, 0), "dtype: DTYPE_UNSPECIFIED is refused, " + give);
  c.Field("dtype_unknown", RawNumber(kDType, 4), "dtype: 4 is no DType that this server knows, " + give);
  c.Field("dtype_negative", RawNumber(kDType, kMinusOne), "dtype: -1 is no DType that this server knows, " + give);
  c.Field("dtype_of_33_bits", RawNumber(kDType, kTwo32 + 1),
          "dtype: 4294967297 is no DType that this server knows, " + give);
  c.Field("output_dtype_unspecified", RawNumber(kOutputDType, 0),
          "output_dtype: DTYPE_UNSPECIFIED is refused, " + give);
  c.Field("output_dtype_unknown", RawNumber(kOutputDType, 99),
          "output_dtype: 99 is no DType that this server knows, " + give);
  c.Field("priority_10", RawNumber(kPriority, 10), "priority: 10 is not in 0..9");
  c.Field("priority_of_33_bits", RawNumber(kPriority, kTwo32), "priority: 4294967296 is not in 0..9");
  c.Routing("k_of_33_bits", ValidRouting().With(RawNumber(kRoutingK, kTwo32 + 2)),
            "routing.k: 4294967298 is above 4294967295");
}

void AddSizes(Cases& c) {
  const MalformedTarget& t = c.target;
  const auto rows_limit = [&](std::int64_t rows) {
    return absl::StrCat("rows: ", rows, " is more than the ", t.max_rows, " that one request may have");
  };
  c.Field("rows_over_limit", RawNumber(kRowCount, t.max_rows + 1), rows_limit(t.max_rows + 1));
  c.Field("rows_huge", RawNumber(kRowCount, std::numeric_limits<std::int64_t>::max()),
          rows_limit(std::numeric_limits<std::int64_t>::max()));

  const RawMessage server_routed = c.valid.Without(kRouting);
  const std::string rows = Rows(t);
  const auto hidden = [&](std::size_t bytes, std::int64_t n, const char* dtype, int size) {
    return absl::StrCat("hidden_states: ", bytes, " bytes do not hold rows=", n, " x hidden=", t.hidden_size, " x ",
                        dtype, " (", n * t.hidden_size * size, " bytes)");
  };
  c.Field("hidden_states_empty", RawBytes(kHiddenStates, ""), hidden(0, kRows, "bf16", 2));
  c.Field("hidden_states_byte_short", RawBytes(kHiddenStates, rows.substr(1)),
          hidden(rows.size() - 1, kRows, "bf16", 2));
  c.Field("hidden_states_byte_long", RawBytes(kHiddenStates, rows + "x"), hidden(rows.size() + 1, kRows, "bf16", 2));
  c.Field("bf16_rows_called_f32", RawNumber(kDType, 2), hidden(rows.size(), kRows, "f32", 4));
  c.Refused("hidden_states_a_row_short", server_routed.With(RawNumber(kRowCount, kRows - 1)),
            hidden(rows.size(), kRows - 1, "bf16", 2));
  c.Refused("zero_rows_with_bytes", server_routed.With(RawNumber(kRowCount, 0)), hidden(rows.size(), 0, "bf16", 2));
  c.Refused("rows_missing", server_routed.Without(kRowCount), hidden(rows.size(), 0, "bf16", 2));

  const auto k_limit = [&](std::int64_t k) { return absl::StrCat("routing.k: ", k, " is not in 1..", t.max_k); };
  c.Routing("routing_empty", {}, k_limit(0));
  c.Routing("k_0", ValidRouting().With(RawNumber(kRoutingK, 0)), k_limit(0));
  c.Routing("k_missing", ValidRouting().Without(kRoutingK), k_limit(0));
  c.Routing("k_over_limit", ValidRouting().With(RawNumber(kRoutingK, t.max_k + 1)), k_limit(t.max_k + 1));
  c.Routing("k_of_32_bits", ValidRouting().With(RawNumber(kRoutingK, 0xffffffffu)), k_limit(0xffffffffu));
  c.Routing("k_less_than_given", ValidRouting().With(RawNumber(kRoutingK, 1)),
            "topk_ids: 24 bytes do not hold rows=3 x k=1 x i32 (12 bytes)");
  c.Routing("topk_ids_missing", ValidRouting().Without(kTopkIds),
            "topk_ids: 0 bytes do not hold rows=3 x k=2 x i32 (24 bytes)");
  c.Routing("topk_ids_as_i64", ValidRouting().With(RawBytes(kTopkIds, std::string(48, '\0'))),
            "topk_ids: 48 bytes do not hold rows=3 x k=2 x i32 (24 bytes)");
  c.Routing("topk_weights_missing", ValidRouting().Without(kTopkWeights),
            "topk_weights: 0 bytes do not hold rows=3 x k=2 x f32 (24 bytes)");
  c.Routing("topk_weights_byte_short", ValidRouting().With(RawBytes(kTopkWeights, std::string(23, '\0'))),
            "topk_weights: 23 bytes do not hold rows=3 x k=2 x f32 (24 bytes)");
}

void AddRouting(Cases& c) {
  const MalformedTarget& t = c.target;
  const std::vector<std::int32_t> ids = {0, 1, 0, 1, 0, 1};
  const std::vector<float> weights(ids.size(), 0.5f);
  const auto id_case = [&](const char* name, std::size_t slot, std::int32_t id) {
    std::vector<std::int32_t> changed = ids;
    changed[slot] = id;
    c.Routing(name, Routing(changed, weights),
              absl::StrCat("topk_ids[", slot / kK, ",", slot % kK, "]=", id, " is not an expert of ", t.model, "/",
                           t.layer, " (0..", t.num_experts - 1, ")"));
  };
  id_case("id_one_too_high", 0, static_cast<std::int32_t>(t.num_experts));
  id_case("id_below_unused", 3, -2);
  id_case("id_greatest", 5, std::numeric_limits<std::int32_t>::max());
  id_case("id_least", 2, std::numeric_limits<std::int32_t>::min());

  c.Routing("id_repeated_in_first_row", Routing({1, 1, 0, 1, 0, 1}, weights),
            "topk_ids[0,1]=1 repeats topk_ids[0,0], an expert may stand in a row once");
  c.Routing("id_repeated_in_last_row", Routing({0, 1, -1, -1, 0, 0}, weights),
            "topk_ids[2,1]=0 repeats topk_ids[2,0], an expert may stand in a row once");

  const auto weight_case = [&](const char* name, std::size_t slot, float weight, const char* shown) {
    std::vector<float> changed = weights;
    changed[slot] = weight;
    c.Routing(name, Routing(ids, changed),
              absl::StrCat("topk_weights[", slot / kK, ",", slot % kK, "]=", shown, " is not finite"));
  };
  weight_case("weight_nan", 0, kNaN, "nan");
  weight_case("weight_infinite", 3, kInf, "inf");
  weight_case("weight_minus_infinite", 5, -kInf, "-inf");
  c.Routing("weight_nan_of_an_unused_slot", Routing({0, -1, 0, 1, 0, 1}, {0.5f, kNaN, 0, 0, 0, 0}),
            "topk_weights[0,1]=nan is not finite");
}

}  // namespace

std::vector<MalformedRequest> MalformedRequests(const MalformedTarget& target) {
  Cases cases(target);
  for (auto* add : {AddTruncated, AddNoMessage, AddWireTypes, AddTwice, AddMissing, AddStrings, AddNumbers,
                    AddOtherRows, AddSizes, AddRouting}) {
    add(cases);
  }
  return std::move(cases.all);
}

std::string ValidServerRoutedRequest(const MalformedTarget& target) {
  return WithUnknownFields(ValidRequest(target).Without(kRouting)).Bytes();
}

std::string ValidPreRoutedRequest(const MalformedTarget& target) {
  return WithUnknownFields(ValidRequest(target)).Bytes();
}

std::string AsStreamRequest(const std::string& forward_request) { return RawBytes(1, forward_request).bytes; }

}  // namespace expertd
