// Every malformed request is refused with its exact answer, whole and in pieces, and the next valid one is read.
#include <cstdint>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "gtest/gtest.h"
#include "server/codec/forward_codec.h"
#include "tests/unit/codec/codec_testing.h"
#include "tests/unit/codec/malformed_requests.h"

namespace expertd {
namespace {

const MalformedTarget kTarget = {
    .model = "qwen3-30b", .layer = 12, .hidden_size = 5, .num_experts = 128, .max_rows = 64, .max_k = 16};

LayerSpec Spec() {
  LayerSpec spec;
  spec.model = kTarget.model;
  spec.layer = kTarget.layer;
  spec.hidden_size = kTarget.hidden_size;
  spec.num_experts = kTarget.num_experts;
  return spec;
}

// All that the codec does with a request, as the server does it.
absl::Status Decode(Slices slices, std::uint64_t* request_id, bool* decodable) {
  absl::StatusOr<ForwardHead> head = ScanForwardRequest(slices, request_id, decodable);
  if (!head.ok()) return head.status();
  const LayerSpec spec = Spec();
  const ForwardLimits limits = {.max_rows = kTarget.max_rows, .max_k = kTarget.max_k};
  if (absl::Status status = CheckAgainstLayer(*head, spec, limits); !status.ok()) return status;
  std::vector<std::int32_t> ids(head->rows * head->k);
  std::vector<float> weights(head->rows * head->k);
  Gather(slices, head->topk_ids, reinterpret_cast<std::byte*>(ids.data()));
  Gather(slices, head->topk_weights, reinterpret_cast<std::byte*>(weights.data()));
  return CheckRouting(ids.data(), weights.data(), head->rows, head->k, spec);
}

void ExpectAnswer(const MalformedRequest& request, const std::vector<std::size_t>& cuts) {
  const CutMessage message(request.bytes, cuts);
  std::uint64_t request_id = 1;
  bool decodable = !request.decodable;
  const absl::Status status = Decode(message.slices(), &request_id, &decodable);
  EXPECT_EQ(status.code(), request.code);
  EXPECT_EQ(status.message(), request.message);
  EXPECT_EQ(decodable, request.decodable);
  EXPECT_EQ(request_id, request.request_id);

  for (const std::string& valid : {ValidServerRoutedRequest(kTarget), ValidPreRoutedRequest(kTarget)}) {
    EXPECT_EQ(Decode(CutMessage(valid).slices(), &request_id, &decodable), absl::OkStatus());
    EXPECT_TRUE(decodable);
    EXPECT_EQ(request_id, kMalformedRequestId);
  }
}

class MalformedRequestTest : public testing::TestWithParam<MalformedRequest> {};

TEST_P(MalformedRequestTest, IsAnsweredExactly) { ExpectAnswer(GetParam(), {}); }

TEST_P(MalformedRequestTest, IsAnsweredTheSameByteByByte) {
  std::vector<std::size_t> cuts;
  for (std::size_t i = 1; i < GetParam().bytes.size(); ++i) cuts.push_back(i);
  ExpectAnswer(GetParam(), cuts);
}

TEST_P(MalformedRequestTest, InAStreamIsAnsweredWithItsIdOrEndsTheCall) {
  const CutMessage message(AsStreamRequest(GetParam().bytes));
  std::uint64_t request_id = 1;
  bool decodable = !GetParam().decodable;
  const absl::StatusOr<StreamHead> head = ScanStreamRequest(message.slices(), &request_id, &decodable);
  EXPECT_EQ(decodable, GetParam().decodable);
  EXPECT_EQ(request_id, GetParam().request_id);
  if (!GetParam().decodable) {
    EXPECT_EQ(head.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(head.status().message().find("StreamRequest: not decodable: "), 0) << head.status();
  } else if (!head.ok()) {  // else the sizes or the routing are at fault, which the stream's scan has in common
    EXPECT_EQ(head.status().message(), GetParam().message);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, MalformedRequestTest, testing::ValuesIn(MalformedRequests(kTarget)),
                         [](const auto& info) { return info.param.name; });

TEST(MalformedRequestsTest, AreManyAndDistinct) {
  std::set<std::string> names;
  for (const MalformedRequest& request : MalformedRequests(kTarget)) {
    EXPECT_TRUE(names.insert(request.name).second) << request.name;
  }
  EXPECT_GE(names.size(), 60u);
}

}  // namespace
}  // namespace expertd
