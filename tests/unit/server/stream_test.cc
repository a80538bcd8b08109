#include <gmock/gmock.h>

#include <map>
#include <thread>

#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

class StreamTest : public ServerTest {
 protected:
  using Stream = grpc::ClientReaderWriter<v1::StreamRequest, v1::ForwardResponse>;

  void Open() {
    Start();
    context_ = std::make_unique<grpc::ClientContext>();
    context_->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(30));
    stream_ = stub_->ForwardStream(context_.get());
  }
  bool Send(const v1::ForwardRequest& request) {
    v1::StreamRequest message;
    *message.mutable_forward() = request;
    return stream_->Write(message);
  }
  bool SendCancel(std::uint64_t id) {
    v1::StreamRequest message;
    message.mutable_cancel()->set_request_id(id);
    return stream_->Write(message);
  }
  // The next answer; an empty one when the stream has ended.
  v1::ForwardResponse Next() {
    v1::ForwardResponse response;
    if (!stream_->Read(&response)) return {};
    return response;
  }

  std::unique_ptr<grpc::ClientContext> context_;
  std::unique_ptr<Stream> stream_;
};

TEST_F(StreamTest, HalfCloseEndsTheStreamAfterAllAnswers) {
  Open();
  constexpr std::uint64_t kRequests = 200;
  std::thread sender([&] {
    for (std::uint64_t id = 1; id <= kRequests; ++id) ASSERT_TRUE(Send(MakeRequest(id, 1 + id % 5)));
    stream_->WritesDone();
  });
  std::map<std::uint64_t, std::string> outputs;
  v1::ForwardResponse response;
  while (stream_->Read(&response)) {
    ASSERT_TRUE(response.has_result()) << response.error().message();
    EXPECT_TRUE(outputs.emplace(response.request_id(), response.result().output()).second);
  }
  sender.join();
  EXPECT_TRUE(stream_->Finish().ok());
  ASSERT_EQ(outputs.size(), kRequests);
  for (std::uint64_t id = 1; id <= kRequests; ++id) EXPECT_EQ(outputs[id], MakeRequest(id, 1 + id % 5).hidden_states());
  EXPECT_EQ(Metric("expertd_requests_total{code=\"OK\",rpc=\"ForwardStream\"}"), kRequests);
}

TEST_F(StreamTest, AnEmptyStreamEndsWell) {
  Open();
  stream_->WritesDone();
  EXPECT_TRUE(stream_->Finish().ok());
}

TEST_F(StreamTest, AnswersComeInTheOrderOfCompletion) {
  options_.max_batch_rows = 4;  // one request a batch
  Open();
  engine_->Close();
  ASSERT_TRUE(Send(MakeRequest(1, 4)));
  ASSERT_TRUE(engine_->WaitForBatches(1));
  ASSERT_TRUE(Send(MakeRequest(2, 4)));
  v1::ForwardRequest urgent = MakeRequest(3, 4);
  urgent.set_priority(9);
  ASSERT_TRUE(Send(urgent));
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 8; }));
  engine_->Open();
  std::vector<std::uint64_t> order;
  for (int i = 0; i < 3; ++i) order.push_back(Next().request_id());
  EXPECT_THAT(order, ElementsAre(1, 3, 2));
}

TEST_F(StreamTest, ARefusedRequestDoesNotEndTheStream) {
  Open();
  v1::ForwardRequest bad = MakeRequest(1, 4);
  bad.set_model("none");
  ASSERT_TRUE(Send(bad));
  v1::ForwardResponse response = Next();
  EXPECT_EQ(response.request_id(), 1);
  EXPECT_EQ(response.error().code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(response.error().message(), "model 'none' is not served here (tiny)");
  v1::StreamRequest empty;
  ASSERT_TRUE(stream_->Write(empty));
  EXPECT_EQ(Next().error().code(), grpc::StatusCode::INVALID_ARGUMENT);
  ASSERT_TRUE(Send(MakeRequest(2, 4)));
  EXPECT_TRUE(Next().has_result());
}

TEST_F(StreamTest, AnIdInFlightIsNotTakenTwice) {
  Open();
  engine_->Close();
  ASSERT_TRUE(Send(MakeRequest(7, 4)));
  ASSERT_TRUE(Send(MakeRequest(7, 4)));
  const v1::ForwardResponse refused = Next();
  EXPECT_EQ(refused.request_id(), 7);
  EXPECT_EQ(refused.error().code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_EQ(refused.error().message(), "request_id: 7 is in flight on this stream");
  engine_->Open();
  EXPECT_TRUE(Next().has_result());
  ASSERT_TRUE(Send(MakeRequest(7, 4)));  // free again
  EXPECT_TRUE(Next().has_result());
}

TEST_F(StreamTest, CancelWithdrawsOneRequest) {
  Open();
  engine_->Close();
  ASSERT_TRUE(Send(MakeRequest(1, 4)));
  ASSERT_TRUE(engine_->WaitForBatches(1));
  ASSERT_TRUE(Send(MakeRequest(2, 4)));
  ASSERT_TRUE(Send(MakeRequest(3, 4)));
  ASSERT_TRUE(SendCancel(2));
  ASSERT_TRUE(SendCancel(99));  // nobody
  const v1::ForwardResponse cancelled = Next();
  EXPECT_EQ(cancelled.request_id(), 2);
  EXPECT_EQ(cancelled.error().code(), grpc::StatusCode::CANCELLED);
  ASSERT_TRUE(SendCancel(1));  // runs already: answered when its batch ends
  // Answers of other requests tell that the cancel was read.
  v1::ForwardRequest probe = MakeRequest(4, 0);
  ASSERT_TRUE(Send(probe));
  EXPECT_EQ(Next().request_id(), 4);
  engine_->Open();
  std::map<std::uint64_t, int> codes;
  for (int i = 0; i < 2; ++i) {
    const v1::ForwardResponse response = Next();
    codes[response.request_id()] = response.error().code();
  }
  EXPECT_EQ(codes, (std::map<std::uint64_t, int>{{1, grpc::StatusCode::CANCELLED}, {3, 0}}));
  EXPECT_EQ(engine_->batches(), 2);
}

TEST_F(StreamTest, TimeoutsBelongToTheRequest) {
  Open();
  engine_->Close();
  ASSERT_TRUE(Send(MakeRequest(1, 4)));
  ASSERT_TRUE(engine_->WaitForBatches(1));
  v1::ForwardRequest late = MakeRequest(2, 4);
  late.set_timeout_us(200'000);  // long enough to be queued on a busy machine
  ASSERT_TRUE(Send(late));
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 4; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(201));
  engine_->Open();
  std::map<std::uint64_t, int> codes;
  for (int i = 0; i < 2; ++i) {
    const v1::ForwardResponse response = Next();
    codes[response.request_id()] = response.error().code();
  }
  EXPECT_EQ(codes, (std::map<std::uint64_t, int>{{1, 0}, {2, grpc::StatusCode::DEADLINE_EXCEEDED}}));
}

TEST_F(StreamTest, NoMoreThanTheLimitIsInFlight) {
  options_.max_in_flight_per_stream = 2;
  Open();
  engine_->Close();
  for (std::uint64_t id = 1; id <= 5; ++id) ASSERT_TRUE(Send(MakeRequest(id, 4)));
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 8; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(Metric("expertd_rows_in_flight"), 8);
  engine_->Open();
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(Next().has_result());
}

TEST_F(StreamTest, OnlyAnUndecodableMessageEndsTheCall) {
  Start();
  engine_->Close();
  const grpc::internal::RpcMethod method("/expertd.v1.Expertd/ForwardStream",
                                         grpc::internal::RpcMethod::BIDI_STREAMING);
  grpc::ClientContext context;
  using Raw = grpc::ByteBuffer;
  std::unique_ptr<grpc::ClientReaderWriter<Raw, Raw>> stream(
      grpc::internal::ClientReaderWriterFactory<Raw, Raw>::Create(channel_.get(), method, &context));
  v1::StreamRequest good;
  *good.mutable_forward() = MakeRequest(1, 4);
  for (const std::string& bytes : {good.SerializeAsString(), std::string("\x0a\x7f no such length")}) {
    const grpc::Slice slice(bytes);
    ASSERT_TRUE(stream->Write(Raw(&slice, 1)));
  }
  ASSERT_TRUE(engine_->WaitForBatches(1));
  engine_->Open();
  Raw answer;
  EXPECT_TRUE(stream->Read(&answer));  // what was accepted before is answered
  EXPECT_FALSE(stream->Read(&answer));
  const grpc::Status status = stream->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_FALSE(status.error_message().empty());
}

TEST_F(StreamTest, ADisconnectedCallerLeavesNothingBehind) {
  Open();
  engine_->Close();
  for (std::uint64_t id = 1; id <= 5; ++id) ASSERT_TRUE(Send(MakeRequest(id, 4)));
  ASSERT_TRUE(engine_->WaitForBatches(1));
  ASSERT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 20; }));
  const auto running = Metric("expertd_queue_rows{layer=\"tiny/0\"}");
  context_->TryCancel();
  EXPECT_EQ(stream_->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_calls") == 0; }));
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_queue_rows{layer=\"tiny/0\"}") == 0; })) << running;
  engine_->Open();
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 0; }));
  EXPECT_EQ(engine_->batches(), 1);
}

TEST_F(StreamTest, ACallerThatDoesNotReadIsCancelled) {
  options_.write_timeout_ms = 100;
  options_.max_in_flight_per_stream = 1024;
  Open();
  // Answers of 128 KiB each fill the transport's window; nobody reads them.
  std::thread sender([&] {
    for (std::uint64_t id = 1; Send(MakeRequest(id, 1024)); ++id) continue;
  });
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_write_timeouts_total") == 1; }));
  sender.join();  // the cancelled stream takes no more
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_calls") == 0; }));
  v1::ForwardResponse response;
  EXPECT_TRUE(Forward(MakeRequest(1, 4), &response).ok());
}

TEST_F(StreamTest, AStreamThatHoldsManyUnsentAnswersIsNotReadFrom) {
  options_.output_mib_per_call = 2;
  options_.max_in_flight_per_stream = 1024;
  Open();
  constexpr std::uint64_t kRequests = 64;  // 8 MiB of answers
  std::thread sender([&] {
    for (std::uint64_t id = 1; id <= kRequests; ++id) ASSERT_TRUE(Send(MakeRequest(id, 1024)));
  });
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_unsent_bytes") > 1 << 20; }));
  EXPECT_LE(Metric("expertd_unsent_bytes"), 2 << 20);
  v1::ForwardResponse answer;
  for (std::uint64_t id = 1; id <= kRequests; ++id) ASSERT_TRUE(stream_->Read(&answer)) << id;
  sender.join();
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_unsent_bytes") == 0; }));
  EXPECT_EQ(Metric("expertd_output_overruns_total"), 0);
}

TEST_F(StreamTest, StalledCallsOfAConnectionShareABudget) {
  options_.write_timeout_ms = 9000;
  options_.output_mib_per_call = 2;
  options_.output_mib_per_connection = 3;  // what all three hold, and not two of them, which may stall first
  options_.max_in_flight_per_stream = 1024;
  Open();
  std::vector<std::unique_ptr<grpc::ClientContext>> contexts;
  std::vector<std::unique_ptr<grpc::ClientReaderWriter<v1::StreamRequest, v1::ForwardResponse>>> streams;
  std::vector<std::thread> senders;
  for (int i = 0; i < 3; ++i) {  // each holds about 1 MiB, less than a call may
    contexts.push_back(std::make_unique<grpc::ClientContext>());
    streams.push_back(stub_->ForwardStream(contexts.back().get()));
    senders.emplace_back([stream = streams.back().get()] {
      v1::StreamRequest message;
      for (std::uint64_t id = 1;; ++id) {
        *message.mutable_forward() = MakeRequest(id, 1024);
        if (!stream->Write(message)) return;
      }
    });
  }
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_output_overruns_total") == 3; }));
  EXPECT_EQ(Metric("expertd_write_timeouts_total"), 0);
  for (std::thread& sender : senders) sender.join();
  ASSERT_TRUE(Send(MakeRequest(1, 4)));  // a stream that reads goes on
  v1::ForwardResponse answer;
  EXPECT_TRUE(stream_->Read(&answer));
  EXPECT_TRUE(answer.has_result());
}

}  // namespace
}  // namespace expertd::testing
