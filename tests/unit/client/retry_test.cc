#include "client/cpp/retry.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>

#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "tests/unit/client/fake_server.h"

namespace expertd::client {
namespace {

using absl::StatusCode;
using std::chrono::microseconds;
using std::chrono::milliseconds;

const RetryClock::time_point kNow{};
constexpr auto kNever = RetryClock::time_point::max();

absl::Status Refused(std::optional<microseconds> after = std::nullopt) {
  absl::Status status = absl::ResourceExhaustedError("full");
  if (after.has_value()) SetRetryAfter(status, *after);
  return status;
}

TEST(RetryBudgetTest, OnlyWhatMayPassIsTriedAgain) {
  RetryBudget budget({.attempts = 3}, [] { return 0.5; });
  EXPECT_TRUE(budget.WaitAfter(1, absl::UnavailableError(""), kNow, kNever).has_value());
  EXPECT_TRUE(budget.WaitAfter(2, Refused(), kNow, kNever).has_value());
  EXPECT_FALSE(budget.WaitAfter(3, Refused(), kNow, kNever).has_value()) << "three attempts are all";
  for (const StatusCode code : {StatusCode::kInvalidArgument, StatusCode::kInternal, StatusCode::kDeadlineExceeded,
                                StatusCode::kCancelled, StatusCode::kUnauthenticated}) {
    EXPECT_FALSE(budget.WaitAfter(1, absl::Status(code, ""), kNow, kNever).has_value()) << code;
  }
}

TEST(RetryBudgetTest, WaitsGrowUpToTheMostAndPushbackIsExact) {
  RetryBudget budget({.attempts = 100, .backoff = milliseconds(10), .max_backoff = milliseconds(35)},
                     [] { return 0.5; });
  EXPECT_EQ(budget.WaitAfter(1, Refused(), kNow, kNever), microseconds(5000));
  EXPECT_EQ(budget.WaitAfter(2, Refused(), kNow, kNever), microseconds(10000));
  EXPECT_EQ(budget.WaitAfter(3, Refused(), kNow, kNever), microseconds(17500));
  EXPECT_EQ(budget.WaitAfter(60, Refused(), kNow, kNever), microseconds(17500));
  EXPECT_EQ(budget.WaitAfter(1, Refused(milliseconds(250)), kNow, kNever), microseconds(250'000));
}

TEST(RetryBudgetTest, ADeadlineThatTheWaitWouldPassEndsIt) {
  RetryBudget budget({.attempts = 9}, [] { return 0.5; });
  EXPECT_FALSE(budget.WaitAfter(1, Refused(milliseconds(7)), kNow, kNow + milliseconds(7)).has_value());
  EXPECT_TRUE(budget.WaitAfter(1, Refused(milliseconds(7)), kNow, kNow + milliseconds(8)).has_value());
}

TEST(RetryBudgetTest, AnEmptyBudgetStopsRetriesUntilSuccessesRefillIt) {
  RetryBudget budget({.attempts = 9, .budget = 2, .refill = 0.5}, [] { return 0.0; });
  const auto retries = [&] { return budget.WaitAfter(1, Refused(), kNow, kNever).has_value(); };
  EXPECT_TRUE(retries());
  EXPECT_TRUE(retries());
  EXPECT_FALSE(retries());
  budget.Succeeded();
  EXPECT_FALSE(retries());
  budget.Succeeded();
  EXPECT_TRUE(retries());
  for (int i = 0; i < 100; ++i) budget.Succeeded();
  EXPECT_TRUE(retries());
  EXPECT_TRUE(retries());
  EXPECT_FALSE(retries()) << "never more than the budget";
}

TEST(RetryPolicyTest, ErrorsNameTheField) {
  EXPECT_TRUE(Validate(RetryPolicy{}).ok());
  EXPECT_EQ(Validate(RetryPolicy{.attempts = 0}).message(), "retry.attempts=0: at least 1");
  EXPECT_EQ(Validate(RetryPolicy{.budget = -1}).message(), "retry.budget=-1: at least 0");
}

// Calls that are made again, on a real connection. The server refuses for 7 ms.
class RetriesTest : public ::testing::Test {
 protected:
  std::unique_ptr<Client> Connect(RetryPolicy policy) {
    auto client = Client::Connect({.endpoint = server_.address(), .connections = 2, .retry = policy});
    EXPECT_TRUE(client.ok()) << client.status();
    return *std::move(client);
  }
  static Request Rows(const std::string& model) { return RandomRequest(FakeServer::LayerOf(model), 2, false, 1); }

  FakeServer server_;
};

TEST_F(RetriesTest, AUnaryCallIsMadeAgainUntilItIsAnswered) {
  const auto client = Connect({.attempts = 3});
  const auto answer = client->Forward(Rows("twice"));
  EXPECT_TRUE(answer.ok()) << answer.status();
  EXPECT_EQ(server_.requests(), 3);
  EXPECT_EQ(client->Forward(Rows("full")).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(server_.requests(), 6);
  EXPECT_EQ(client->Forward(Rows("full"), milliseconds(5)).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(server_.requests(), 7) << "7 ms are longer than the deadline";
}

TEST_F(RetriesTest, WithoutAPolicyNothingIsMadeAgain) {
  EXPECT_EQ(Connect({})->Forward(Rows("twice")).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(server_.requests(), 1);
}

TEST_F(RetriesTest, AStreamSendsRefusedRequestsAgainAlsoWhileItCloses) {
  const auto client = Connect({.attempts = 3});
  const auto stream = client->OpenStream();
  std::vector<std::promise<absl::Status>> done(4);
  for (auto& promise : done) {
    ASSERT_TRUE(stream->Forward(Rows("twice"), [&](absl::StatusOr<Answer> a) { promise.set_value(a.status()); }).ok());
  }
  int answered = 0;
  EXPECT_TRUE(stream->Close().ok());
  for (auto& promise : done) answered += promise.get_future().get().ok();
  EXPECT_GE(answered, 1);
  EXPECT_GT(server_.requests(), 4);
}

TEST_F(RetriesTest, ARequestThatWaitsToBeSentAgainCanBeCancelled) {
  const auto client = Connect({.attempts = 1000, .budget = 1000});
  const auto stream = client->OpenStream();
  std::promise<absl::Status> done;
  const auto id = stream->Forward(Rows("full"), [&](absl::StatusOr<Answer> a) { done.set_value(a.status()); });
  ASSERT_TRUE(id.ok());
  while (server_.requests() < 3) std::this_thread::yield();
  auto cancelled = done.get_future();
  while (cancelled.wait_for(milliseconds(1)) != std::future_status::ready) stream->Cancel(*id);
  EXPECT_EQ(cancelled.get().code(), StatusCode::kCancelled);
  EXPECT_TRUE(stream->Close().ok());
}

TEST_F(RetriesTest, DestructionEndsWhatWaitsToBeMadeAgain) {
  auto client = Connect({.attempts = 1000, .budget = 1000});
  std::promise<absl::Status> unary, streamed;
  client->ForwardAsync(Rows("full"), kNoTimeout, [&](absl::StatusOr<Answer> a) { unary.set_value(a.status()); });
  auto stream = client->OpenStream();
  ASSERT_TRUE(stream->Forward(Rows("full"), [&](absl::StatusOr<Answer> a) { streamed.set_value(a.status()); }).ok());
  while (server_.requests() < 6) std::this_thread::yield();
  client.reset();
  stream.reset();
  const StatusCode code = unary.get_future().get().code();
  EXPECT_TRUE(code == StatusCode::kCancelled || code == StatusCode::kResourceExhausted) << code;
  EXPECT_EQ(streamed.get_future().get().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace expertd::client
