// Requests that must be refused, over a real socket: each answered with its exact status, and followed by a valid
// request that is answered right.
#include <gtest/gtest.h>

#include "client/cpp/client.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/server_process.h"
#include "tests/unit/codec/malformed_requests.h"

namespace expertd::testing {
namespace {

class MalformedTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server =
        ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--max-rows-per-request", "64"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    const auto client = client::Client::Connect({.endpoint = server_->address()});
    ASSERT_TRUE(client.ok()) << client.status();
    const auto layers = (*client)->ListLayers();
    ASSERT_TRUE(layers.ok());
    const v1::Layer& layer = layers->layers(0);
    target_ = {.model = layer.model(),
               .layer = layer.layer(),
               .hidden_size = layer.hidden_size(),
               .num_experts = layer.num_experts(),
               .max_rows = (*client)->info().max_rows_per_request(),
               .max_k = (*client)->info().max_k()};
    channel_ = RawChannel(server_->address());
    for (const std::string& valid : {ValidServerRoutedRequest(target_), ValidPreRoutedRequest(target_)}) {
      const RawReply reply = RawUnary(channel_, kForwardMethod, valid);
      ASSERT_TRUE(reply.status.ok()) << reply.status.error_message();
      valid_.push_back({valid, Output(reply.bytes)});
      ASSERT_EQ(valid_.back().output.size(), 3u * static_cast<std::size_t>(layer.hidden_size()) * 4);
    }
    ASSERT_NE(valid_[0].output, valid_[1].output);
    ASSERT_GE(MalformedRequests(target_).size(), 60u);
  }

  static std::string Output(const std::string& bytes) {
    v1::ForwardResponse response;
    return response.ParseFromString(bytes) ? response.result().output() : "unparseable";
  }

  struct Valid {
    std::string request;
    std::string output;
  };
  // Server-routed and pre-routed in turns.
  const Valid& NextValid() { return valid_[next_++ % valid_.size()]; }

  std::unique_ptr<ServerProcess> server_;
  std::shared_ptr<grpc::Channel> channel_;
  MalformedTarget target_;
  std::vector<Valid> valid_;
  std::size_t next_ = 0;
};

TEST_F(MalformedTest, UnaryCallersGetTheStatusAndTheNextOneTheAnswer) {
  for (const MalformedRequest& request : MalformedRequests(target_)) {
    const RawReply refused = RawUnary(channel_, kForwardMethod, request.bytes);
    EXPECT_EQ(static_cast<int>(refused.status.error_code()), static_cast<int>(request.code)) << request.name;
    EXPECT_EQ(refused.status.error_message(), request.message) << request.name;
    const Valid& valid = NextValid();
    const RawReply answered = RawUnary(channel_, kForwardMethod, valid.request);
    ASSERT_TRUE(answered.status.ok()) << "after " << request.name << ": " << answered.status.error_message();
    ASSERT_EQ(Output(answered.bytes), valid.output) << "after " << request.name;
  }
}

TEST_F(MalformedTest, AStreamGoesOnAfterWhatCanBeDecoded) {
  RawStream stream(channel_, kForwardStreamMethod);
  for (const MalformedRequest& request : MalformedRequests(target_)) {
    if (!request.decodable) continue;
    ASSERT_TRUE(stream.Write(AsStreamRequest(request.bytes))) << request.name;
    const auto refused = stream.Read();
    ASSERT_TRUE(refused.has_value()) << request.name << " ended the stream: " << stream.Finish().error_message();
    v1::ForwardResponse response;
    ASSERT_TRUE(response.ParseFromString(*refused)) << request.name;
    EXPECT_EQ(response.request_id(), request.request_id) << request.name;
    EXPECT_EQ(response.error().code(), static_cast<int>(request.code)) << request.name;
    EXPECT_EQ(response.error().message(), request.message) << request.name;
    const Valid& valid = NextValid();
    ASSERT_TRUE(stream.Write(AsStreamRequest(valid.request)));
    const auto answered = stream.Read();
    ASSERT_TRUE(answered.has_value()) << "after " << request.name;
    ASSERT_EQ(Output(*answered), valid.output) << "after " << request.name;
  }
  EXPECT_TRUE(stream.WritesDone());
  EXPECT_EQ(stream.Read(), std::nullopt);
  EXPECT_TRUE(stream.Finish().ok());
}

TEST_F(MalformedTest, WhatCannotBeDecodedEndsItsStreamOnly) {
  RawStream bystander(channel_, kForwardStreamMethod);
  for (const MalformedRequest& request : MalformedRequests(target_)) {
    if (request.decodable) continue;
    RawStream stream(channel_, kForwardStreamMethod);
    ASSERT_TRUE(stream.Write(AsStreamRequest(request.bytes)));
    EXPECT_EQ(stream.Read(), std::nullopt) << request.name;
    const grpc::Status status = stream.Finish();
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT) << request.name;
    EXPECT_NE(status.error_message().find("not decodable"), std::string::npos)
        << request.name << status.error_message();
    const Valid& valid = NextValid();
    ASSERT_TRUE(bystander.Write(AsStreamRequest(valid.request)));
    const auto answered = bystander.Read();
    ASSERT_TRUE(answered.has_value()) << "after " << request.name;
    ASSERT_EQ(Output(*answered), valid.output) << "after " << request.name;
  }
}

TEST_F(MalformedTest, MessagesAboveEveryLimitAreRefusedAndTheConnectionGoesOn) {
  const auto client = client::Client::Connect({.endpoint = server_->address()});
  ASSERT_TRUE(client.ok());
  const std::string huge((*client)->info().max_message_bytes() * 4, 'x');
  const RawReply refused = RawUnary(channel_, kForwardMethod, huge);
  EXPECT_FALSE(refused.status.ok());
  const RawReply answered = RawUnary(channel_, kForwardMethod, valid_[0].request);
  ASSERT_TRUE(answered.status.ok()) << answered.status.error_message();
  EXPECT_EQ(Output(answered.bytes), valid_[0].output);
}

}  // namespace
}  // namespace expertd::testing
