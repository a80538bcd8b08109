#include <gmock/gmock.h>

#include <set>
#include <thread>

#include "server/server.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;
using DrainTest = ServerTest;

Clock::time_point In(std::chrono::milliseconds time) { return Clock::now() + time; }

TEST_F(DrainTest, AcceptedWorkIsAnsweredThenStreamsEnd) {
  Start();
  engine_->Close();
  grpc::ClientContext context;
  auto stream = stub_->ForwardStream(&context);
  for (std::uint64_t id = 1; id <= 6; ++id) {
    v1::StreamRequest message;
    *message.mutable_forward() = MakeRequest(id, 4);
    ASSERT_TRUE(stream->Write(message));
  }
  v1::ForwardResponse unary;
  std::thread caller([&] { EXPECT_TRUE(Forward(MakeRequest(50, 4), &unary).ok()); });
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 28; }));

  std::atomic<bool> drained = false;
  std::thread drain([&] { drained = server_->Drain(In(std::chrono::seconds(20))); });
  // New work is refused while the old is finished.
  v1::ForwardResponse response;
  grpc::Status refused;
  ASSERT_TRUE(Eventually([&] { return HealthOf("") == 2; }));
  EXPECT_TRUE(Eventually([&] {
    v1::ForwardRequest probe = MakeRequest(60, 0);
    refused = Forward(probe, &response);
    return refused.error_code() == grpc::StatusCode::UNAVAILABLE;
  }));
  EXPECT_THAT(refused.error_message(), HasSubstr("draining"));
  EXPECT_FALSE(drained);
  engine_->Open();
  drain.join();
  caller.join();
  EXPECT_TRUE(drained);
  EXPECT_EQ(unary.result().output(), MakeRequest(50, 4).hidden_states());
  std::set<std::uint64_t> answered;
  while (stream->Read(&response)) {
    EXPECT_TRUE(response.has_result()) << response.error().message();
    answered.insert(response.request_id());
  }
  EXPECT_EQ(answered.size(), 6);
  const grpc::Status end = stream->Finish();
  EXPECT_EQ(end.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(end.error_message(), "draining; unanswered ids were not run");
}

// Every request that a batch ran for is answered, whatever moment the drain comes at.
TEST_F(DrainTest, ABusyStreamLosesNothingThatWasRun) {
  Start();
  grpc::ClientContext context;
  auto stream = stub_->ForwardStream(&context);
  std::atomic<std::uint64_t> sent = 0;
  std::thread sender([&] {
    for (std::uint64_t id = 1;; ++id) {
      v1::StreamRequest message;
      *message.mutable_forward() = MakeRequest(id, 3);
      if (!stream->Write(message)) return;
      sent = id;
    }
  });
  std::uint64_t answered = 0;
  std::thread reader([&] {
    v1::ForwardResponse response;
    while (stream->Read(&response)) {
      EXPECT_TRUE(response.has_result()) << response.error().message();
      ++answered;
    }
  });
  ASSERT_TRUE(Eventually([&] { return sent > 200; }));
  EXPECT_TRUE(server_->Drain(In(std::chrono::seconds(20))));
  sender.join();
  reader.join();
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(Metric("expertd_requests_total{code=\"OK\",rpc=\"ForwardStream\"}"), static_cast<double>(answered));
  EXPECT_LE(answered, sent);
}

TEST_F(DrainTest, IdleStreamsEndAtOnce) {
  Start();
  grpc::ClientContext context;
  auto stream = stub_->ForwardStream(&context);
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_calls") == 1; }));
  EXPECT_TRUE(server_->Drain(In(std::chrono::seconds(10))));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  grpc::ClientContext later_context;
  EXPECT_EQ(stub_->ForwardStream(&later_context)->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(DrainTest, TheDeadlineIsKept) {
  Start();
  engine_->Close();
  v1::ForwardResponse response;
  std::thread caller([&] { EXPECT_TRUE(Forward(MakeRequest(1, 4), &response).ok()); });
  ASSERT_TRUE(engine_->WaitForBatches(1));
  EXPECT_FALSE(server_->Drain(In(std::chrono::milliseconds(50))));
  engine_->Open();
  caller.join();
}

TEST_F(DrainTest, DestroyingABusyServerCancelsItsCalls) {
  Start();
  engine_->Close();
  v1::ForwardResponse response;
  grpc::Status status;
  std::thread caller([&] { status = Forward(MakeRequest(1, 4), &response); });
  ASSERT_TRUE(engine_->WaitForBatches(1));
  // The server cannot end while its batch runs: the engine opens once the caller has been told.
  std::thread opener([&, engine = engine_] {
    caller.join();
    engine->Open();
  });
  engine_ = nullptr;
  server_.reset();
  opener.join();
  EXPECT_FALSE(status.ok());
}

}  // namespace
}  // namespace expertd::testing
