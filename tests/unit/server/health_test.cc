#include <gmock/gmock.h>

#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;
using HealthTest = ServerTest;

constexpr int kServing = 1, kNotServing = 2, kUnknown = 0;

TEST_F(HealthTest, FollowsLoadingAndDraining) {
  Start(/*load=*/false);
  EXPECT_EQ(HealthOf(""), kNotServing);
  EXPECT_EQ(HealthOf("live"), kServing);
  EXPECT_EQ(HealthOf("tiny/0"), kUnknown);
  v1::ForwardResponse response;
  const grpc::Status loading = Forward(MakeRequest(1, 1), &response);
  EXPECT_EQ(loading.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(loading.error_message(), "layer tiny/0 is loading");

  ASSERT_TRUE(server_->Load([] { return false; }).ok());
  for (const char* service : {"", "live", "tiny/0", "tiny/1"}) EXPECT_EQ(HealthOf(service), kServing) << service;
  EXPECT_EQ(HealthOf("tiny/2"), kUnknown);
  EXPECT_TRUE(Forward(MakeRequest(1, 1), &response).ok());

  server_->LeaveHealth();
  for (const char* service : {"", "tiny/0", "tiny/1"}) EXPECT_EQ(HealthOf(service), kNotServing) << service;
  EXPECT_EQ(HealthOf("live"), kServing);
  EXPECT_TRUE(Forward(MakeRequest(1, 1), &response).ok());  // the grace
}

TEST_F(HealthTest, StoppedLoadsNeverGetReady) {
  Start(/*load=*/false);
  EXPECT_TRUE(absl::IsCancelled(server_->Load([] { return true; })));
  EXPECT_EQ(HealthOf(""), kNotServing);
}

TEST_F(HealthTest, ALostEngineIsTold) {
  Start();
  engine_->FailWith(absl::InternalError("the device is gone"));
  v1::ForwardResponse response;
  const grpc::Status status = Forward(MakeRequest(1, 1), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("the device is gone"));
  EXPECT_TRUE(Eventually([&] { return engine_lost_ == 1; }));
  EXPECT_EQ(HealthOf("live"), kNotServing);
  EXPECT_EQ(HealthOf(""), kNotServing);
  EXPECT_EQ(Forward(MakeRequest(2, 1), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_EQ(engine_lost_, 1);
}

TEST_F(HealthTest, AHungDeviceIsALostEngine) {
  options_.hang_timeout_ms = 200;
  options_.inline_batch_us = 0;  // as on every engine that can hang
  Start();
  v1::ForwardResponse response;
  ASSERT_TRUE(Forward(MakeRequest(1, 1), &response).ok());
  engine_->Close();  // the next batch does not come back
  const auto start = Clock::now();
  const grpc::Status status = Forward(MakeRequest(2, 1), &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(status.error_message(), HasSubstr("--hang-timeout-ms 200"));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(5));
  EXPECT_TRUE(Eventually([&] { return engine_lost_ == 1; }));
  EXPECT_EQ(HealthOf("live"), kNotServing);
  EXPECT_EQ(HealthOf(""), kNotServing);
  EXPECT_EQ(Forward(MakeRequest(3, 1), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST_F(HealthTest, TheHealthListenerHasNothingElse) {
  options_.health_address = "127.0.0.1:0";
  Start();
  const std::string address = server_->addresses().health;
  EXPECT_EQ(HealthOf("", address), kServing);
  EXPECT_EQ(HealthOf("tiny/1", address), kServing);
  const auto channel = grpc::CreateChannel(address, grpc::InsecureChannelCredentials());
  grpc::ClientContext context;
  v1::ListLayersResponse layers;
  EXPECT_EQ(v1::Expertd::NewStub(channel)->ListLayers(&context, {}, &layers).error_code(),
            grpc::StatusCode::UNIMPLEMENTED);
}

}  // namespace
}  // namespace expertd::testing
