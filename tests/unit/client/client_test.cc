#include "client/cpp/client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "client/cpp/program/bench/payload.h"
#include "tests/unit/client/fake_server.h"

namespace expertd::client {
namespace {

using absl::StatusCode;

class ClientTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto client = Client::Connect({.endpoint = server_.address(), .connections = 2});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  static Request Rows(const std::string& model, std::int64_t rows = 3, std::uint64_t seed = 1) {
    return RandomRequest(FakeServer::LayerOf(model), rows, false, seed);
  }
  static std::string Sent(const Request& request) {
    return std::string(request.hidden_states.begin(), request.hidden_states.end());
  }

  FakeServer server_;
  std::unique_ptr<Client> client_;
};

TEST_F(ClientTest, ConnectLearnsTheServersLimits) {
  EXPECT_EQ(client_->info().version(), "fake");
  EXPECT_EQ(client_->info().max_rows_per_request(), FakeServer::kMaxRows);
  EXPECT_EQ(client_->connections(), 2);
}

TEST_F(ClientTest, ConnectSaysWhyItFails) {
  EXPECT_EQ(Client::Connect({.endpoint = server_.address(), .connections = 0}).status().code(),
            StatusCode::kInvalidArgument);
  const auto nobody = Client::Connect({.endpoint = "127.0.0.1:1", .connect_timeout = std::chrono::milliseconds(100)});
  EXPECT_EQ(nobody.status().code(), StatusCode::kUnavailable);
  EXPECT_THAT(std::string(nobody.status().message()), ::testing::HasSubstr("127.0.0.1:1: no connection within 100 ms"));
}

TEST_F(ClientTest, HealthTellsServingUnknownAndNotServingApart) {
  EXPECT_EQ(*client_->IsServing(), true);
  EXPECT_EQ(*client_->IsServing("copy/0"), false);
  EXPECT_EQ(client_->IsServing("nobody").status().code(), StatusCode::kNotFound);
}

TEST_F(ClientTest, UnaryGivesTheRowsBack) {
  for (const std::int64_t rows : {0, 1, 64}) {
    const Request request = Rows("copy", rows);
    const auto answer = client_->Forward(request);
    ASSERT_TRUE(answer.ok()) << answer.status();
    EXPECT_EQ(answer->OutputString(), Sent(request));
    EXPECT_EQ(answer->result().rows(), rows);
  }
}

TEST_F(ClientTest, UnaryErrorsKeepTheirRetryHint) {
  const auto answer = client_->Forward(Rows("full"));
  EXPECT_EQ(answer.status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(answer.status()), std::chrono::milliseconds(7));
}

TEST_F(ClientTest, UnaryDeadlineEndsAHeldCall) {
  EXPECT_EQ(client_->Forward(Rows("hold"), std::chrono::milliseconds(30)).status().code(),
            StatusCode::kDeadlineExceeded);
}

TEST_F(ClientTest, MessagesAboveTheServersLimitAreNotSent) {
  for (const std::int64_t rows : {FakeServer::kMaxRows + 1, std::int64_t{100000}}) {
    const absl::Status unary = client_->Forward(Rows("copy", rows)).status();
    EXPECT_EQ(unary.code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(unary.message()), ::testing::HasSubstr("are more than the server takes, 64"));
    const auto stream = client_->OpenStream();
    EXPECT_EQ(stream->Forward(Rows("copy", rows), [](absl::StatusOr<Answer>) { FAIL(); }).status(), unary);
    EXPECT_TRUE(stream->Close().ok()) << "the stream goes on";
  }
}

TEST_F(ClientTest, DestructionCancelsCallsAndWaitsForTheirCallbacks) {
  std::vector<absl::StatusCode> codes;
  client_->ForwardAsync(Rows("hold"), kNoTimeout,
                        [&](absl::StatusOr<Answer> a) { codes.push_back(a.status().code()); });
  client_.reset();
  EXPECT_THAT(codes, ::testing::ElementsAre(StatusCode::kCancelled));
}

TEST_F(ClientTest, StreamsOutliveTheClient) {
  const auto stream = client_->OpenStream();
  client_.reset();
  std::promise<absl::Status> done;
  ASSERT_TRUE(stream->Forward(Rows("copy"), [&](absl::StatusOr<Answer> a) { done.set_value(a.status()); }).ok());
  EXPECT_TRUE(done.get_future().get().ok());
}

TEST_F(ClientTest, StreamAnswersEveryRequestOfManyThreads) {
  const auto stream = client_->OpenStream(3);
  std::atomic<int> right{0};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t i = 0; i < 50; ++i) {
        const Request request = Rows("copy", 1 + static_cast<std::int64_t>(i % 5), t * 100 + i);
        const auto id = stream->Forward(request, [&right, sent = Sent(request)](absl::StatusOr<Answer> answer) {
          if (answer.ok() && answer->OutputString() == sent) ++right;
        });
        ASSERT_TRUE(id.ok()) << id.status();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(right, 200);
}

TEST_F(ClientTest, CallbacksMaySendTheNextRequestOfAFullStream) {
  const auto stream = client_->OpenStream(1);
  std::atomic<int> left{100};
  std::promise<void> finished;
  std::function<void(absl::StatusOr<Answer>)> next = [&](absl::StatusOr<Answer> answer) {
    ASSERT_TRUE(answer.ok());
    if (--left == 0) return finished.set_value();
    ASSERT_TRUE(stream->Forward(Rows("copy"), next).ok());
  };
  ASSERT_TRUE(stream->Forward(Rows("copy"), next).ok());
  std::thread other([&] {  // competes for the room
    for (int i = 0; i < 100; ++i) ASSERT_TRUE(stream->Forward(Rows("copy"), [](absl::StatusOr<Answer>) {}).ok());
  });
  finished.get_future().get();
  other.join();
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(ClientTest, OneRefusalDoesNotEndTheStream) {
  const auto stream = client_->OpenStream();
  std::promise<absl::Status> refused, answered;
  ASSERT_TRUE(stream->Forward(Rows("full"), [&](absl::StatusOr<Answer> a) { refused.set_value(a.status()); }).ok());
  ASSERT_TRUE(stream->Forward(Rows("copy"), [&](absl::StatusOr<Answer> a) { answered.set_value(a.status()); }).ok());
  const absl::Status status = refused.get_future().get();
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(RetryAfter(status), std::chrono::milliseconds(7));
  EXPECT_TRUE(answered.get_future().get().ok());
}

TEST_F(ClientTest, CancelReachesTheServer) {
  const auto stream = client_->OpenStream();
  std::promise<absl::Status> done;
  const auto id = stream->Forward(Rows("hold"), [&](absl::StatusOr<Answer> a) { done.set_value(a.status()); });
  ASSERT_TRUE(id.ok());
  stream->Cancel(*id + 1000);  // unknown: nothing happens
  stream->Cancel(*id);
  EXPECT_EQ(done.get_future().get().code(), StatusCode::kCancelled);
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_TRUE(stream->Close().ok());
  EXPECT_EQ(stream->Forward(Rows("copy"), [](absl::StatusOr<Answer>) { FAIL(); }).status().code(),
            StatusCode::kUnavailable);
}

TEST_F(ClientTest, AStreamThatTheServerEndsGivesEveryoneItsStatus) {
  const auto stream = client_->OpenStream();
  std::vector<std::promise<absl::Status>> done(3);
  const char* models[] = {"hold", "hold", "end"};
  for (std::size_t i = 0; i < done.size(); ++i) {
    const auto id = stream->Forward(Rows(models[i]), [&, i](absl::StatusOr<Answer> a) {
      // Sending from here must neither hang nor succeed.
      EXPECT_EQ(stream->Forward(Rows("copy"), [](absl::StatusOr<Answer>) { FAIL(); }).status().code(),
                StatusCode::kUnavailable);
      done[i].set_value(a.status());
    });
    ASSERT_TRUE(id.ok());
  }
  for (auto& promise : done) EXPECT_EQ(promise.get_future().get().code(), StatusCode::kUnavailable);
  EXPECT_EQ(stream->Close().code(), StatusCode::kUnavailable);
  EXPECT_TRUE(stream->ended());
}

TEST_F(ClientTest, DestructionCancelsWhatIsUnansweredAndWakesWhoWaits) {
  std::promise<absl::Status> done;
  auto stream = client_->OpenStream(1);
  ASSERT_TRUE(stream->Forward(Rows("hold"), [&](absl::StatusOr<Answer> a) { done.set_value(a.status()); }).ok());
  std::thread waiting(
      [&] { EXPECT_FALSE(stream->Forward(Rows("copy"), [](absl::StatusOr<Answer>) { FAIL(); }).ok()); });
  stream->Abort();
  waiting.join();
  stream.reset();
  EXPECT_EQ(done.get_future().get().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace expertd::client
