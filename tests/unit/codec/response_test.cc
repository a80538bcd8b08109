// Responses written by us: byte for byte what Protobuf would have written.
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "expertd/v1/expertd.pb.h"
#include "gtest/gtest.h"
#include "server/codec/forward_codec.h"

namespace expertd {
namespace {

v1::ForwardResponse AsMessage(const ResponseHead& head, const std::string& output) {
  v1::ForwardResponse response;
  response.set_request_id(head.request_id);
  v1::ForwardResult& result = *response.mutable_result();
  result.set_rows(head.rows);
  result.set_dtype(head.dtype == DType::kF32 ? v1::DTYPE_F32 : v1::DTYPE_BF16);
  v1::StageMicros& stages = *result.mutable_stages();
  stages.set_decode(static_cast<float>(head.decode * 1e6));
  stages.set_queue(static_cast<float>(head.queue * 1e6));
  stages.set_stage_in(static_cast<float>(head.stages.stage_in * 1e6));
  stages.set_route(static_cast<float>(head.stages.route * 1e6));
  stages.set_gemm(static_cast<float>(head.stages.gemm * 1e6));
  stages.set_combine(static_cast<float>(head.stages.combine * 1e6));
  stages.set_stage_out(static_cast<float>(head.stages.stage_out * 1e6));
  stages.set_total(static_cast<float>(head.total * 1e6));
  result.set_batch_rows(head.batch_rows);
  result.set_batch_requests(head.batch_requests);
  result.set_fingerprint(std::string(head.fingerprint));
  if (head.k > 0) {
    const std::size_t slots = head.rows * head.k;
    result.mutable_routing()->set_k(head.k);
    result.mutable_routing()->set_topk_ids(head.topk_ids, slots * sizeof(*head.topk_ids));
    result.mutable_routing()->set_topk_weights(head.topk_weights, slots * sizeof(*head.topk_weights));
  }
  result.set_output(output);
  return response;
}

void ExpectAsProtobuf(const ResponseHead& head, std::size_t output_bytes) {
  const std::string output(output_bytes, 'o');
  const std::string prefix = EncodeResponsePrefix(head, output_bytes);
  EXPECT_TRUE(prefix + output == AsMessage(head, output).SerializeAsString()) << output_bytes << " bytes of output";
  EXPECT_LE(prefix.capacity(), prefix.size() + 32) << "reserved for bytes that are not its own";
}

ResponseHead FullHead() {
  ResponseHead head;
  head.request_id = std::numeric_limits<std::uint64_t>::max();
  head.rows = 3;
  head.dtype = DType::kF32;
  head.decode = 1e-6;
  head.queue = 20e-6;
  head.total = 1.25;
  head.stages = {.stage_in = 3e-6, .route = 4.5e-6, .gemm = 500e-6, .combine = 6e-6, .stage_out = 7e-6};
  head.batch_rows = 4096;
  head.batch_requests = 17;
  head.fingerprint = "0123456789abcdef";
  return head;
}

// Around every size at which one of the nested lengths grows by a byte.
TEST(EncodeResponseTest, IsWhatProtobufWrites) {
  for (std::size_t boundary : {128u, 16384u, 2097152u}) {
    const std::size_t step = boundary > 16384 ? 16 : 1;
    for (std::size_t below = 0; below <= 128; below += step) {
      ExpectAsProtobuf(FullHead(), boundary - below);
      ExpectAsProtobuf({}, boundary - below);
    }
    ExpectAsProtobuf(FullHead(), boundary - 1);
  }
}

TEST(EncodeResponseTest, CarriesRouting) {
  for (std::int64_t rows : {0, 1, 3, 1000}) {
    for (std::int64_t k : {1, 2, 8, 64}) {
      std::vector<std::int32_t> ids(rows * k);
      std::vector<float> weights(rows * k);
      for (std::size_t i = 0; i < ids.size(); ++i) {
        ids[i] = static_cast<std::int32_t>(i) - 1;
        weights[i] = 0.25f * static_cast<float>(i);
      }
      ResponseHead head = FullHead();
      head.rows = rows;
      head.k = k;
      head.topk_ids = ids.data();
      head.topk_weights = weights.data();
      ExpectAsProtobuf(head, rows * 10);
    }
  }
}

TEST(EncodeErrorTest, IsWhatProtobufWrites) {
  const absl::Status statuses[] = {
      absl::InvalidArgumentError("rows: -1 is negative"),
      absl::ResourceExhaustedError(""),
      absl::UnauthenticatedError(std::string(20000, 'x')),
      absl::NotFoundError("model \xe2\x82\xac"),
  };
  for (const absl::Status& status : statuses) {
    for (std::uint64_t number : {std::uint64_t{0}, std::uint64_t{300}, std::numeric_limits<std::uint64_t>::max()}) {
      v1::ForwardResponse response;
      response.set_request_id(number);
      response.mutable_error()->set_code(static_cast<int>(status.code()));
      response.mutable_error()->set_message(std::string(status.message()));
      response.mutable_error()->set_retry_after_us(number);
      EXPECT_EQ(EncodeErrorResponse(number, status, number), response.SerializeAsString()) << status;
    }
  }
}

TEST(EncodeErrorTest, StaysReadableWhenTheMessageIsNotUtf8) {
  v1::ForwardResponse response;
  const absl::Status status = absl::InternalError("file \xff\xe2\x82: lost");
  ASSERT_TRUE(response.ParseFromString(EncodeErrorResponse(7, status, 0)));
  EXPECT_EQ(response.error().message(), "file ???: lost");
}

}  // namespace
}  // namespace expertd
