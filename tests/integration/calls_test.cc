// Deadlines, cancellation and callers that vanish. Batches wait for company here, so that requests are queued when it
// happens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
#include <thread>

#include "client/cpp/client.h"
#include "expertd/v1/expertd.grpc.pb.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/server_process.h"

namespace expertd::testing {
namespace {

using absl::StatusCode;
using client::Answer;
using client::Client;
using client::Request;
using std::chrono::milliseconds;
using std::chrono::seconds;

class CallsTest : public ::testing::Test {
 protected:
  void Start(const std::string& window_us, std::vector<std::string> flags = {}) {
    flags.insert(flags.end(), {"--checkpoint", GoldenDir("olmoe"), "--batch-window-us", window_us});
    auto server = ServerProcess::Start(EXPERTD_BIN_DIR, flags);
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client = Client::Connect({.endpoint = server_->address()});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
    request_ = golden_.RequestFor(golden_.layers[0].layer);
    const auto answer = client_->Forward(request_, seconds(30));
    ASSERT_TRUE(answer.ok()) << answer.status();
    expected_ = answer->OutputString();
  }

  std::future<absl::StatusOr<Answer>> Send(client::Stream& stream, const Request& request,
                                           std::uint64_t* id = nullptr) {
    auto promise = std::make_shared<std::promise<absl::StatusOr<Answer>>>();
    const auto sent =
        stream.Forward(request, [promise](absl::StatusOr<Answer> answer) { promise->set_value(std::move(answer)); });
    EXPECT_TRUE(sent.ok()) << sent.status();
    if (id != nullptr && sent.ok()) *id = *sent;
    return promise->get_future();
  }

  void ExpectRight(const absl::StatusOr<Answer>& answer) {
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->OutputString(), expected_);
  }

  // Waits for the counter of answers of that kind to reach `count`.
  bool Counted(const std::string& rpc, const std::string& code, double count) {
    const std::string sample = "expertd_requests_total{code=\"" + code + "\",rpc=\"" + rpc + "\"}";
    for (int i = 0; i < 200; ++i) {
      const auto value = MetricValue(HttpGet(server_->metrics_address(), "/metrics"), sample);
      if (value.has_value() && *value >= count) return true;
      std::this_thread::sleep_for(milliseconds(25));
    }
    return false;
  }

  // Waits until the server holds no rows; the transport lets go of an answer a moment after the caller has it.
  bool Idle() {
    for (int i = 0; i < 200; ++i) {
      if (MetricValue(HttpGet(server_->metrics_address(), "/metrics"), "expertd_rows_in_flight") == 0) return true;
      std::this_thread::sleep_for(milliseconds(25));
    }
    return false;
  }

  const GoldenCase golden_{"olmoe"};
  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<Client> client_;
  Request request_;
  std::string expected_;
};

TEST_F(CallsTest, DeadlinesOfSingleRequestsOnAStream) {
  Start("100000");
  const auto stream = client_->OpenStream();
  Request hurried = request_;
  hurried.head.set_timeout_us(1);
  auto late = Send(*stream, hurried);
  auto patient = Send(*stream, request_);
  EXPECT_EQ(late.get().status().code(), StatusCode::kDeadlineExceeded);
  ExpectRight(patient.get());
  EXPECT_TRUE(Counted("ForwardStream", "DEADLINE_EXCEEDED", 1));
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(CallsTest, ACallsDeadlineIsTheRequests) {
  Start("0");
  EXPECT_EQ(client_->Forward(request_, milliseconds(-5)).status().code(), StatusCode::kDeadlineExceeded);
  Request hurried = request_;
  hurried.head.set_timeout_us(1);
  EXPECT_EQ(client_->Forward(hurried, seconds(10)).status().code(), StatusCode::kDeadlineExceeded);
  ExpectRight(client_->Forward(request_, seconds(10)));
}

TEST_F(CallsTest, CancelWithdrawsAQueuedRequestAndNoOther) {
  Start("300000");
  const auto stream = client_->OpenStream();
  std::uint64_t id = 0;
  auto withdrawn = Send(*stream, request_, &id);
  auto other = Send(*stream, request_);
  stream->Cancel(id);
  EXPECT_EQ(withdrawn.get().status().code(), StatusCode::kCancelled);
  ExpectRight(other.get());
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(CallsTest, ACancelledCallIsDropped) {
  Start("300000");
  grpc::ClientContext context;
  v1::ForwardRequest message = request_.head;
  message.set_hidden_states(golden_.hidden_states);
  v1::ForwardResponse response;
  const auto stub = v1::Expertd::NewStub(RawChannel(server_->address()));
  std::thread canceller([&context] {
    std::this_thread::sleep_for(milliseconds(50));
    context.TryCancel();
  });
  EXPECT_EQ(stub->Forward(&context, message, &response).error_code(), grpc::StatusCode::CANCELLED);
  canceller.join();
  EXPECT_TRUE(Counted("Forward", "CANCELLED", 1));
  ExpectRight(client_->Forward(request_, seconds(10)));
}

TEST_F(CallsTest, ACallerThatVanishesLeavesNothingBehind) {
  Start("200000");
  for (int i = 0; i < 5; ++i) {
    const auto stream = client_->OpenStream();
    for (int j = 0; j < 8; ++j) Send(*stream, request_);
    std::this_thread::sleep_for(milliseconds(20));
  }  // destroyed with its requests unanswered
  ExpectRight(client_->Forward(request_, seconds(10)));
  EXPECT_TRUE(Idle());
}

TEST_F(CallsTest, AFullServerRefusesAtOnceAndSaysWhenToComeBack) {
  Start("200000", {"--max-queued-rows", std::to_string(golden_.rows)});
  ASSERT_TRUE(Idle());
  const auto stream = client_->OpenStream();
  auto accepted = Send(*stream, request_);
  auto refused = Send(*stream, request_);
  const absl::Status on_stream = refused.get().status();
  EXPECT_EQ(on_stream.code(), StatusCode::kResourceExhausted) << on_stream;
  EXPECT_TRUE(client::RetryAfter(on_stream).has_value());
  const absl::Status unary = client_->Forward(request_, seconds(10)).status();
  EXPECT_EQ(unary.code(), StatusCode::kResourceExhausted) << unary;
  EXPECT_TRUE(client::RetryAfter(unary).has_value());
  ExpectRight(accepted.get());
  EXPECT_TRUE(Idle());
  ExpectRight(client_->Forward(request_, seconds(10)));
}

TEST_F(CallsTest, WrongLayersAndFingerprints) {
  Start("0");
  Request request = request_;
  request.head.set_layer(99);
  EXPECT_EQ(client_->Forward(request).status().code(), StatusCode::kNotFound);
  request = request_;
  request.head.set_model("nobody");
  EXPECT_EQ(client_->Forward(request).status().code(), StatusCode::kNotFound);
  request = request_;
  request.head.set_expected_fingerprint("0000");
  EXPECT_EQ(client_->Forward(request).status().code(), StatusCode::kFailedPrecondition);
  request.head.set_expected_fingerprint(client_->ListLayers()->layers(0).fingerprint());
  ExpectRight(client_->Forward(request));
}

TEST_F(CallsTest, ZeroRowsAreAnEmptyAnswer) {
  Start("0");
  Request request = request_;
  request.head.set_rows(0);
  request.hidden_states = grpc::Slice();
  const auto answer = client_->Forward(request);
  ASSERT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(answer->output_bytes, 0u);
  EXPECT_EQ(answer->result().rows(), 0);
}

TEST_F(CallsTest, AnIdInFlightCannotBeUsedAgain) {
  Start("200000");
  v1::StreamRequest message;
  *message.mutable_forward() = request_.head;
  message.mutable_forward()->set_request_id(5);
  message.mutable_forward()->set_hidden_states(golden_.hidden_states);
  RawStream stream(RawChannel(server_->address()), kForwardStreamMethod);
  ASSERT_TRUE(stream.Write(message.SerializeAsString()));
  ASSERT_TRUE(stream.Write(message.SerializeAsString()));
  ASSERT_TRUE(stream.WritesDone());
  v1::ForwardResponse refused, answered;
  const auto first = stream.Read(), second = stream.Read();
  ASSERT_TRUE(first.has_value() && second.has_value());
  ASSERT_TRUE(refused.ParseFromString(*first) && answered.ParseFromString(*second));
  EXPECT_EQ(refused.error().code(), static_cast<int>(StatusCode::kInvalidArgument));
  EXPECT_EQ(answered.result().output(), expected_);
  EXPECT_EQ(stream.Read(), std::nullopt);
  EXPECT_TRUE(stream.Finish().ok());
}

}  // namespace
}  // namespace expertd::testing
