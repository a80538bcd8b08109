#include <gmock/gmock.h>

#include <cstring>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/support/reference_engine.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;
using UnaryTest = ServerTest;

TEST_F(UnaryTest, RowsComeBackWithTheirId) {
  Start();
  for (const std::int64_t rows : {1, 2, 17, 1024}) {
    const v1::ForwardRequest request = MakeRequest(static_cast<std::uint64_t>(rows), rows);
    v1::ForwardResponse response;
    const grpc::Status status = Forward(request, &response);
    ASSERT_TRUE(status.ok()) << status.error_message();
    EXPECT_EQ(response.request_id(), request.request_id());
    ASSERT_TRUE(response.has_result());
    EXPECT_EQ(response.result().rows(), rows);
    EXPECT_EQ(response.result().dtype(), v1::DTYPE_BF16);
    EXPECT_EQ(response.result().output(), request.hidden_states());
    EXPECT_EQ(response.result().batch_rows(), rows);
    EXPECT_EQ(response.result().batch_requests(), 1);
    EXPECT_FALSE(response.result().has_routing());
    EXPECT_GT(response.result().stages().total(), 0);
  }
}

TEST_F(UnaryTest, OutputTypeDefaultsToTheInputsAndCanDiffer) {
  Start();
  v1::ForwardRequest request = MakeRequest(1, 3);
  request.set_output_dtype(v1::DTYPE_F32);
  v1::ForwardResponse response;
  ASSERT_TRUE(Forward(request, &response).ok());
  ASSERT_EQ(response.result().output().size(), 3 * kHidden * sizeof(float));
  for (std::size_t i = 0; i < 3 * kHidden; ++i) {
    std::uint16_t bits;
    float value;
    std::memcpy(&bits, request.hidden_states().data() + 2 * i, sizeof(bits));
    std::memcpy(&value, response.result().output().data() + 4 * i, sizeof(value));
    ASSERT_EQ(value, Bf16ToF32(bits)) << i;
  }
}

TEST_F(UnaryTest, ZeroRowsAreAnsweredWithoutABatch) {
  Start();
  v1::ForwardResponse response;
  const grpc::Status status = Forward(MakeRequest(5, 0), &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.request_id(), 5);
  EXPECT_EQ(response.result().rows(), 0);
  EXPECT_EQ(response.result().output(), "");
  EXPECT_EQ(engine_->batches(), 0);
}

TEST_F(UnaryTest, RoutingIsUsedAndReturned) {
  Start(MakeReferenceEngine(), TinyPlan(), true);
  v1::ForwardRequest request = MakeRequest(1, 4);
  request.set_return_routing(true);
  v1::ForwardResponse routed;
  ASSERT_TRUE(Forward(request, &routed).ok());
  ASSERT_EQ(routed.result().routing().k(), 2);
  ASSERT_EQ(routed.result().routing().topk_ids().size(), 4 * 2 * 4);

  // The server's own routing, sent back to it, gives the same bits.
  *request.mutable_routing() = routed.result().routing();
  v1::ForwardResponse again;
  const grpc::Status status = Forward(request, &again);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(again.result().output(), routed.result().output());
  EXPECT_EQ(again.result().routing().topk_ids(), routed.result().routing().topk_ids());

  // Another expert gives others.
  auto* ids = reinterpret_cast<std::int32_t*>(request.mutable_routing()->mutable_topk_ids()->data());
  std::int32_t other = 0;
  while (other == ids[0] || other == ids[1]) ++other;
  ids[0] = other;
  ASSERT_TRUE(Forward(request, &again).ok());
  const std::size_t row = kHidden * 2;
  EXPECT_NE(again.result().output().substr(0, row), routed.result().output().substr(0, row));
  EXPECT_EQ(again.result().output().substr(row), routed.result().output().substr(row));
}

TEST_F(UnaryTest, BadRoutingIsRefusedBeforeABatch) {
  Start();
  v1::ForwardRequest request = MakeRequest(1, 1);
  const std::int32_t ids[2] = {0, 4};
  const float weights[2] = {0.5, 0.5};
  request.mutable_routing()->set_k(2);
  request.mutable_routing()->set_topk_ids(std::string(reinterpret_cast<const char*>(ids), sizeof(ids)));
  request.mutable_routing()->set_topk_weights(std::string(reinterpret_cast<const char*>(weights), sizeof(weights)));
  v1::ForwardResponse response;
  const grpc::Status status = Forward(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("topk_ids[0,1]=4 is not an expert of tiny/0 (0..3)"));
  EXPECT_EQ(engine_->batches(), 0);
}

TEST_F(UnaryTest, RefusalsCarryTheirCodeAndAreCounted) {
  options_.refuse_non_finite = true;
  Start();
  struct Case {
    const char* name;
    std::function<void(v1::ForwardRequest&)> change;
    grpc::StatusCode code;
    const char* reason;
    const char* message;
  };
  const Case cases[] = {
      {"other model", [](auto& r) { r.set_model("none"); }, grpc::StatusCode::NOT_FOUND, "unknown_layer",
       "model 'none' is not served here (tiny)"},
      {"other layer", [](auto& r) { r.set_layer(7); }, grpc::StatusCode::NOT_FOUND, "unknown_layer",
       "layer tiny/7 is not served here (2 layers from 0 to 1)"},
      {"other weights", [](auto& r) { r.set_expected_fingerprint("0123"); }, grpc::StatusCode::FAILED_PRECONDITION,
       "fingerprint", "expected_fingerprint: 0123 is not that of tiny/0 ("},
      {"one row too many", [](auto& r) { r = MakeRequest(1, 1025); }, grpc::StatusCode::INVALID_ARGUMENT, "invalid",
       "1025"},
      {"twice the largest message", [](auto& r) { r = MakeRequest(1, 2048); }, grpc::StatusCode::INVALID_ARGUMENT,
       "invalid", "2048"},
      {"bytes that do not fit", [](auto& r) { r.mutable_hidden_states()->pop_back(); },
       grpc::StatusCode::INVALID_ARGUMENT, "invalid", "hidden_states"},
      {"infinite row",
       [](auto& r) {
         (*r.mutable_hidden_states())[2 * kHidden] = '\x80';
         (*r.mutable_hidden_states())[2 * kHidden + 1] = '\x7f';
       },
       grpc::StatusCode::INVALID_ARGUMENT, "invalid", "hidden_states[1] holds NaN or infinity"},
  };
  for (const Case& c : cases) {
    SCOPED_TRACE(c.name);
    const std::string series = absl::StrCat("expertd_rejected_total{reason=\"", c.reason, "\"}");
    const double before = Metric(series);
    v1::ForwardRequest request = MakeRequest(1, 2);
    c.change(request);
    v1::ForwardResponse response;
    const grpc::Status status = Forward(request, &response);
    EXPECT_EQ(status.error_code(), c.code) << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.message));
    EXPECT_EQ(Metric(series), before + 1);
    EXPECT_TRUE(Forward(MakeRequest(2, 2), &response).ok());
  }
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 0; }));
}

TEST_F(UnaryTest, FullBudgetIsRefusedAtOnceWithARetryHint) {
  options_.max_queued_rows = 8;
  Start();
  engine_->Close();
  v1::ForwardResponse held;
  std::thread first([&] { EXPECT_TRUE(Forward(MakeRequest(1, 8), &held).ok()); });
  ASSERT_TRUE(engine_->WaitForBatches(1));

  grpc::ClientContext context;
  v1::ForwardResponse response;
  const grpc::Status status = stub_->Forward(&context, MakeRequest(2, 1), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_details(), HasSubstr("type.googleapis.com/google.rpc.RetryInfo"));
  const auto& trailers = context.GetServerTrailingMetadata();
  EXPECT_EQ(trailers.count("grpc-retry-pushback-ms"), 1);
  engine_->Open();
  first.join();
  EXPECT_TRUE(Eventually([&] { return Forward(MakeRequest(3, 8), &response).ok(); }));
}

TEST_F(UnaryTest, RowBuffersInUseAreATransientRefusal) {
  auto engine = std::make_unique<GatedEngine>(/*row_buffer_bytes=*/16 << 10);
  engine_ = engine.get();
  Start(std::move(engine), TinyPlan(), true);
  v1::ForwardResponse response;
  EXPECT_EQ(Forward(MakeRequest(1, 1024), &response).error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Forward(MakeRequest(2, 8), &response).ok());
}

TEST_F(UnaryTest, TheRetryHintForRowBuffersFollowsFromTheExpectedWait) {
  auto engine = std::make_unique<GatedEngine>(/*row_buffer_bytes=*/16 << 10);
  engine_ = engine.get();
  Start(std::move(engine), TinyPlan(), true);
  const auto hold = [&](std::uint64_t id) {
    engine_->Close();
    const int before = engine_->batches();
    std::thread holder([&, id] {
      v1::ForwardResponse held;
      EXPECT_TRUE(Forward(MakeRequest(id, 32), &held).ok());
    });
    EXPECT_TRUE(engine_->WaitForBatches(before + 1));
    return holder;
  };
  std::thread slow = hold(1);
  std::this_thread::sleep_for(std::chrono::milliseconds(80));
  engine_->Open();
  slow.join();

  std::thread running = hold(2);  // 8 KiB of 16; a batch is known to take 80 ms
  grpc::ClientContext context;
  v1::ForwardResponse response;
  const grpc::Status status = stub_->Forward(&context, MakeRequest(3, 64), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  const auto& trailers = context.GetServerTrailingMetadata();
  const auto hint = trailers.find("grpc-retry-pushback-ms");
  ASSERT_NE(hint, trailers.end());
  EXPECT_GE(std::stoi(std::string(hint->second.data(), hint->second.size())), 75);
  engine_->Open();
  running.join();
}

TEST_F(UnaryTest, PastDeadlinesRunNoBatch) {
  Start();
  engine_->Close();
  v1::ForwardResponse held;
  std::thread first([&] { EXPECT_TRUE(Forward(MakeRequest(1, 4), &held).ok()); });
  ASSERT_TRUE(engine_->WaitForBatches(1));
  v1::ForwardRequest late = MakeRequest(2, 4);
  late.set_timeout_us(200'000);  // long enough to be queued on a busy machine
  v1::ForwardResponse response;
  std::thread second([&] { EXPECT_EQ(Forward(late, &response).error_code(), grpc::StatusCode::DEADLINE_EXCEEDED); });
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 4; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(201));
  engine_->Open();
  first.join();
  second.join();
  EXPECT_EQ(engine_->batches(), 1);
}

TEST_F(UnaryTest, CancelledCallsLeaveTheQueue) {
  Start();
  engine_->Close();
  v1::ForwardResponse held, response;
  std::thread first([&] { EXPECT_TRUE(Forward(MakeRequest(1, 4), &held).ok()); });
  ASSERT_TRUE(engine_->WaitForBatches(1));
  grpc::ClientContext context;
  std::thread second([&] {
    EXPECT_EQ(stub_->Forward(&context, MakeRequest(2, 4), &response).error_code(), grpc::StatusCode::CANCELLED);
  });
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 4; }));
  context.TryCancel();
  second.join();
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 0; }));
  engine_->Open();
  first.join();
  EXPECT_EQ(engine_->batches(), 1);
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 0; }));
}

// The null engine gives the rows back, and rows whose largest code is e4m3's largest have the scale 1 again.
TEST_F(UnaryTest, RowsAsE4m3BothWays) {
  Start();
  v1::ForwardRequest request = MakeRequest(1, 2);
  std::string codes(2 * kHidden, '\0');
  for (std::size_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<char>(i % kHidden == 7 ? 0x7e : i * 5 % 0x7e);
  const float scales[2] = {1, 1};
  request.set_dtype(v1::DTYPE_F8_E4M3);
  request.set_hidden_states(codes);
  request.set_scales(scales, sizeof(scales));
  v1::ForwardResponse response;
  grpc::Status status = Forward(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.result().dtype(), v1::DTYPE_F8_E4M3);
  EXPECT_EQ(response.result().output(), codes);
  EXPECT_EQ(response.result().scales(), request.scales());

  request.set_output_dtype(v1::DTYPE_BF16);
  status = Forward(request, &response);
  ASSERT_TRUE(status.ok()) << status.error_message();
  EXPECT_EQ(response.result().output().size(), 2 * codes.size());
  EXPECT_EQ(response.result().output().substr(14, 2), std::string("\xe0\x43"));  // 448 as bf16
  EXPECT_TRUE(response.result().scales().empty());
}

TEST_F(UnaryTest, CompressedMessagesAreRefused) {
  Start();
  grpc::ClientContext context;
  context.set_compression_algorithm(GRPC_COMPRESS_GZIP);
  v1::ForwardResponse response;
  EXPECT_EQ(stub_->Forward(&context, MakeRequest(1, 512), &response).error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_TRUE(Forward(MakeRequest(2, 4), &response).ok());
}

TEST_F(UnaryTest, ManyCallersShareBatches) {
  Start();
  engine_->Close();
  std::vector<std::thread> callers;
  std::atomic<int> shared = 0;
  for (std::uint64_t id = 1; id <= 8; ++id) {
    if (id == 2) {
      ASSERT_TRUE(engine_->WaitForBatches(1));
    }
    callers.emplace_back([&, id] {
      const v1::ForwardRequest request = MakeRequest(id, static_cast<std::int64_t>(id));
      v1::ForwardResponse response;
      ASSERT_TRUE(Forward(request, &response).ok());
      EXPECT_EQ(response.result().output(), request.hidden_states());
      if (response.result().batch_requests() > 1) ++shared;
    });
  }
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 35; }));
  engine_->Open();
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(shared, 7);  // the first went alone, the others waited for it together
}

}  // namespace
}  // namespace expertd::testing
