// Requests written by Protobuf, read by us: fields in any order, slices cut anywhere.
#include <algorithm>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "expertd/v1/expertd.pb.h"
#include "gtest/gtest.h"
#include "server/codec/forward_codec.h"
#include "tests/unit/codec/codec_testing.h"
#include "tests/unit/codec/raw_message.h"

namespace expertd {
namespace {

v1::ForwardRequest FullRequest() {
  v1::ForwardRequest request;
  request.set_model("qwen3-30b \xe2\x82\xac");
  request.set_layer(std::numeric_limits<std::uint32_t>::max());
  request.set_request_id(std::numeric_limits<std::uint64_t>::max());
  request.set_rows(3);
  request.set_dtype(v1::DTYPE_F32);
  request.set_output_dtype(v1::DTYPE_BF16);
  request.set_shared_expert(false);
  request.set_return_routing(true);
  request.set_timeout_us(1'500'000);
  request.set_priority(9);
  request.set_traceparent(std::string(64, 't'));
  request.set_expected_fingerprint(std::string(128, 'f'));
  request.mutable_routing()->set_k(2);
  request.mutable_routing()->set_topk_ids("topk ids, 24 bytes of it");
  request.mutable_routing()->set_topk_weights("weights: another 24 byte");
  request.set_hidden_states(std::string(200, 'h'));
  return request;
}

v1::ForwardRequest LeastRequest() {
  v1::ForwardRequest request;
  request.set_model("m");
  request.set_dtype(v1::DTYPE_BF16);
  request.set_hidden_states("");
  return request;
}

void ExpectReads(const v1::ForwardRequest& request, absl::string_view bytes, const std::vector<std::size_t>& cuts) {
  const CutMessage message(bytes, cuts);
  std::uint64_t request_id = 0;
  bool decodable = false;
  const absl::StatusOr<ForwardHead> head = ScanForwardRequest(message.slices(), &request_id, &decodable);
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_TRUE(decodable);
  EXPECT_EQ(request_id, request.request_id());
  ExpectSame(*head, message.slices(), request);
}

TEST(ForwardRequestTest, ReadsEveryField) { ExpectReads(FullRequest(), FullRequest().SerializeAsString(), {}); }

TEST(ForwardRequestTest, ReadsTheLeastRequestWithItsDefaults) {
  ExpectReads(LeastRequest(), LeastRequest().SerializeAsString(), {});
  v1::ForwardRequest f32 = LeastRequest();
  f32.set_dtype(v1::DTYPE_F32);
  ExpectReads(f32, f32.SerializeAsString(), {});
}

TEST(ForwardRequestTest, ReadsDefaultsThatAreWrittenOut) {
  const RawMessage raw = {{RawBytes(1, "m"), RawNumber(2, 0), RawNumber(3, 0), RawNumber(4, 0), RawNumber(5, 1),
                           RawNumber(7, 0), RawNumber(8, 0), RawNumber(9, 0), RawNumber(10, 0), RawBytes(11, ""),
                           RawBytes(12, ""), RawBytes(20, "")}};
  v1::ForwardRequest request;
  ASSERT_TRUE(request.ParseFromString(raw.Bytes()));
  ASSERT_TRUE(request.has_shared_expert());
  ExpectReads(request, raw.Bytes(), {});
}

TEST(ForwardRequestTest, ReadsSlicesCutAtEveryByte) {
  for (const v1::ForwardRequest& request : {FullRequest(), LeastRequest()}) {
    const std::string bytes = request.SerializeAsString();
    std::vector<std::size_t> everywhere;
    for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
      ExpectReads(request, bytes, {cut});
      ExpectReads(request, bytes, {cut, cut, std::min(cut + 1, bytes.size())});  // with an empty slice between
      everywhere.push_back(cut);
    }
    ExpectReads(request, bytes, everywhere);
  }
}

// One field of FullRequest() a piece, so that they can be shuffled; nested ones too.
TEST(ForwardRequestTest, ReadsFieldsInAnyOrder) {
  const v1::ForwardRequest request = FullRequest();
  std::vector<RawField> routing = {RawNumber(1, request.routing().k()),
                                   RawBytes(2, {request.routing().topk_ids().data(), 24}),
                                   RawBytes(3, {request.routing().topk_weights().data(), 24}), RawNumber(9, 1)};
  std::vector<RawField> fields;
  const auto part = [&](auto set) {
    v1::ForwardRequest one;
    set(one);
    fields.push_back({0, one.SerializeAsString()});
  };
  part([&](auto& r) { r.set_model(request.model()); });
  part([&](auto& r) { r.set_layer(request.layer()); });
  part([&](auto& r) { r.set_request_id(request.request_id()); });
  part([&](auto& r) { r.set_rows(request.rows()); });
  part([&](auto& r) { r.set_dtype(request.dtype()); });
  part([&](auto& r) { r.set_output_dtype(request.output_dtype()); });
  part([&](auto& r) { r.set_shared_expert(request.shared_expert()); });
  part([&](auto& r) { r.set_return_routing(request.return_routing()); });
  part([&](auto& r) { r.set_timeout_us(request.timeout_us()); });
  part([&](auto& r) { r.set_priority(request.priority()); });
  part([&](auto& r) { r.set_traceparent(request.traceparent()); });
  part([&](auto& r) { r.set_expected_fingerprint(request.expected_fingerprint()); });
  part([&](auto& r) { r.set_hidden_states(request.hidden_states()); });
  fields.push_back(RawGroup(100, RawGroup(101, RawFixed64(1).bytes).bytes));

  std::mt19937 random(1);
  for (int round = 0; round < 200; ++round) {
    std::shuffle(routing.begin(), routing.end(), random);
    std::vector<RawField> shuffled = fields;
    shuffled.push_back(RawBytes(13, RawMessage{routing}.Bytes()));
    std::shuffle(shuffled.begin(), shuffled.end(), random);
    const std::string bytes = RawMessage{shuffled}.Bytes();
    v1::ForwardRequest parsed;
    ASSERT_TRUE(parsed.ParseFromString(bytes));
    ExpectReads(parsed, bytes, {random() % (bytes.size() + 1)});
  }
}

TEST(ForwardRequestTest, SkipsGroupsToTheLimit) {
  std::string groups = RawNumber(1, 1).bytes;
  for (int depth = 0; depth < 32; ++depth) groups = RawGroup(50 + depth, groups).bytes;
  const v1::ForwardRequest request = LeastRequest();
  ExpectReads(request, request.SerializeAsString() + groups, {});
}

TEST(ForwardRequestTest, NumbersMayBeLongerThanTheyNeed) {
  const std::string bytes = LeastRequest().SerializeAsString() + RawTag(4, 0) + std::string("\x83\x80\x00", 3);
  const CutMessage message(bytes);
  const absl::StatusOr<ForwardHead> head = ScanForwardRequest(message.slices());
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->rows, 3);
}

TEST(ForwardRequestTest, NoSlicesAreAnEmptyMessage) {
  bool decodable = false;
  EXPECT_EQ(ScanForwardRequest({}, nullptr, &decodable).status(), absl::InvalidArgumentError("model: missing"));
  EXPECT_TRUE(decodable);
}

// A refused request's id is known wherever it stands, so that a stream can answer it.
TEST(ForwardRequestTest, TheIdOfARefusedRequestMayComeLast) {
  const RawMessage raw = {{RawBytes(1, ""), RawNumber(10, 99), RawNumber(3, 42)}};
  std::uint64_t request_id = 0;
  bool decodable = false;
  EXPECT_EQ(ScanForwardRequest(CutMessage(raw.Bytes()).slices(), &request_id, &decodable).status(),
            absl::InvalidArgumentError("model: empty"));
  EXPECT_EQ(request_id, 42u);
  EXPECT_TRUE(decodable);
}

struct StreamCase {
  std::string name;
  std::string bytes;
  std::string message;  // empty: accepted
  std::uint64_t request_id = 0;
  bool decodable = true;
};

TEST(StreamRequestTest, CarriesARequestOrItsWithdrawal) {
  v1::StreamRequest stream;
  *stream.mutable_forward() = FullRequest();
  const std::string bytes = stream.SerializeAsString();
  for (std::size_t cut = 0; cut <= bytes.size(); ++cut) {
    const CutMessage message(bytes, {cut});
    std::uint64_t request_id = 0;
    const absl::StatusOr<StreamHead> head = ScanStreamRequest(message.slices(), &request_id);
    ASSERT_TRUE(head.ok()) << head.status();
    EXPECT_FALSE(head->cancel_request_id.has_value());
    EXPECT_EQ(request_id, FullRequest().request_id());
    ExpectSame(head->forward, message.slices(), FullRequest());
  }

  for (std::uint64_t id : {std::uint64_t{0}, std::uint64_t{1}, std::numeric_limits<std::uint64_t>::max()}) {
    v1::StreamRequest cancel;
    cancel.mutable_cancel()->set_request_id(id);
    const absl::StatusOr<StreamHead> head = ScanStreamRequest(CutMessage(cancel.SerializeAsString()).slices());
    ASSERT_TRUE(head.ok()) << head.status();
    EXPECT_EQ(head->cancel_request_id, id);
  }
}

TEST(StreamRequestTest, RefusesWhatIsNeitherOrBoth) {
  const std::string valid = LeastRequest().SerializeAsString() + RawNumber(3, 5).bytes;
  const RawField forward = RawBytes(1, valid);
  const RawField cancel = RawBytes(2, RawNumber(1, 6).bytes);
  const StreamCase cases[] = {
      {"empty", "", "kind: missing"},
      {"unknown kind", RawBytes(3, "abc").bytes, "kind: missing"},
      {"empty request", RawBytes(1, "").bytes, "model: missing"},
      {"two requests", forward.bytes + forward.bytes, "forward: given twice", 5},
      {"request, then cancel", forward.bytes + cancel.bytes, "cancel: given beside another kind", 5},
      {"cancel, then request", cancel.bytes + forward.bytes, "forward: given beside another kind", 5},
      {"two cancels", cancel.bytes + cancel.bytes, "cancel: given twice"},
      {"request as number", RawNumber(1, 5).bytes, "forward: wire type is varint, must be length-delimited"},
      {"cancel as 64 bits", RawFixed64(2).bytes, "cancel: wire type is 64-bit, must be length-delimited"},
      {"cancel id twice", RawBytes(2, RawNumber(1, 6).bytes + RawNumber(1, 6).bytes).bytes,
       "cancel.request_id: given twice"},
      {"cancel id as bytes", RawBytes(2, RawBytes(1, "a").bytes).bytes,
       "cancel.request_id: wire type is length-delimited, must be varint"},
      {"cut", forward.bytes.substr(0, forward.bytes.size() - 1),
       "StreamRequest: not decodable: truncated: 10 bytes wanted, 9 left at byte 2", 0, false},
      {"cut inside", RawBytes(1, valid.substr(0, valid.size() - 1)).bytes,
       "StreamRequest: not decodable: truncated: 1 bytes wanted, 0 left at byte 11", 0, false},
      {"cancel cut inside", RawBytes(2, RawTag(1, 0)).bytes,
       "StreamRequest: not decodable: truncated: 1 bytes wanted, 0 left at byte 3", 0, false},
  };
  for (const StreamCase& c : cases) {
    SCOPED_TRACE(c.name);
    std::uint64_t request_id = 1;
    bool decodable = !c.decodable;
    const absl::StatusOr<StreamHead> head = ScanStreamRequest(CutMessage(c.bytes).slices(), &request_id, &decodable);
    EXPECT_EQ(head.status(), absl::InvalidArgumentError(c.message));
    EXPECT_EQ(request_id, c.request_id);
    EXPECT_EQ(decodable, c.decodable);
  }
}

}  // namespace
}  // namespace expertd
