// What operators ask a server: health, reflection, metrics.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>

#include "client/cpp/client.h"
#include "tests/integration/golden_case.h"
#include "tests/integration/raw_call.h"
#include "tests/integration/server_process.h"

namespace expertd::testing {
namespace {

using client::Client;
using ::testing::HasSubstr;

class EndpointsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    auto server = ServerProcess::Start(EXPERTD_BIN_DIR, {"--checkpoint", GoldenDir("olmoe"), "--checkpoint",
                                                         GoldenDir("mixtral"), "--health-address", "127.0.0.1:0"});
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    auto client = Client::Connect({.endpoint = server_->address()});
    ASSERT_TRUE(client.ok()) << client.status();
    client_ = *std::move(client);
  }

  std::unique_ptr<ServerProcess> server_;
  std::unique_ptr<Client> client_;
};

TEST_F(EndpointsTest, HealthOfTheServerAndOfEachLayer) {
  for (const char* name : {"", "live", "olmoe/0", "mixtral/0"}) {
    const auto serving = client_->IsServing(name);
    ASSERT_TRUE(serving.ok()) << name << serving.status();
    EXPECT_TRUE(*serving) << name;
  }
  EXPECT_EQ(client_->IsServing("olmoe/1").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(EndpointsTest, TheHealthListenerHasNothingButHealth) {
  const auto address = server_->process().WaitForLine("health on ", std::chrono::seconds(1));
  ASSERT_TRUE(address.has_value()) << server_->process().out();
  const auto channel = RawChannel(*address);
  const RawReply health = RawUnary(channel, "/grpc.health.v1.Health/Check", "");
  EXPECT_TRUE(health.status.ok()) << health.status.error_message();
  EXPECT_EQ(health.bytes, std::string("\x08\x01", 2)) << "SERVING";
  for (const char* method : {kForwardMethod, "/expertd.v1.Expertd/ListLayers"}) {
    EXPECT_EQ(RawUnary(channel, method, "").status.error_code(), grpc::StatusCode::UNIMPLEMENTED) << method;
  }
}

TEST_F(EndpointsTest, ReflectionNamesTheServices) {
  RawStream stream(RawChannel(server_->address()), "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo");
  ASSERT_TRUE(stream.Write("\x3a\x01*"));  // list_services: "*"
  const auto reply = stream.Read();
  ASSERT_TRUE(reply.has_value());
  EXPECT_THAT(*reply, HasSubstr("expertd.v1.Expertd"));
  EXPECT_THAT(*reply, HasSubstr("grpc.health.v1.Health"));
}

TEST_F(EndpointsTest, MetricsCountWhatHappened) {
  const GoldenCase golden("olmoe");
  constexpr int kCalls = 7;
  for (int i = 0; i < kCalls; ++i) ASSERT_TRUE(client_->Forward(golden.RequestFor(golden.layers[0].layer)).ok());
  client::Request wrong = golden.RequestFor(golden.layers[0].layer);
  wrong.head.set_layer(55);
  ASSERT_EQ(client_->Forward(wrong).status().code(), absl::StatusCode::kNotFound);

  const std::string text = HttpGet(server_->metrics_address(), "/metrics");
  EXPECT_THAT(text, HasSubstr("200 OK"));
  EXPECT_EQ(MetricValue(text, R"(expertd_requests_total{code="OK",rpc="Forward"})"), kCalls);
  EXPECT_EQ(MetricValue(text, R"(expertd_requests_total{code="NOT_FOUND",rpc="Forward"})"), 1);
  EXPECT_EQ(MetricValue(text, R"(expertd_request_seconds_count{rpc="Forward"})"), kCalls + 1);
  for (const char* stage : {"decode", "queue", "stage_in", "route", "gemm", "combine", "stage_out"}) {
    const std::string sample = std::string("expertd_stage_seconds_count{stage=\"") + stage + "\"}";
    EXPECT_EQ(MetricValue(text, sample), kCalls) << stage;
  }
  EXPECT_EQ(MetricValue(text, R"(expertd_batch_rows_sum{layer="olmoe/0"})"), kCalls * golden.rows);
  EXPECT_EQ(MetricValue(text, R"(expertd_batch_rows_count{layer="mixtral/0"})"), 0);
  EXPECT_GT(MetricValue(text, R"(expertd_weight_bytes{layer="olmoe/0"})").value_or(0), 0);
  EXPECT_EQ(MetricValue(text, R"(expertd_queue_rows{layer="olmoe/0"})"), 0);
  EXPECT_THAT(text, HasSubstr("expertd_build_info{"));
  const double now = static_cast<double>(std::time(nullptr));
  EXPECT_NEAR(MetricValue(text, "process_start_time_seconds").value_or(0), now, 120);
  EXPECT_GT(MetricValue(text, "process_cpu_seconds_total").value_or(0), 0);
  EXPECT_GT(MetricValue(text, "process_resident_memory_bytes").value_or(0), 1e6);
  EXPECT_GT(MetricValue(text, "process_open_fds").value_or(0), 3);
  EXPECT_GT(MetricValue(text, "process_max_fds").value_or(0), MetricValue(text, "process_open_fds").value_or(1e9));
  EXPECT_THAT(HttpGet(server_->metrics_address(), "/nothing"), HasSubstr("404"));
}

TEST_F(EndpointsTest, StagesSumToTheTotal) {
  const GoldenCase golden("olmoe");
  double stages = 0, total = 0;
  for (int i = 0; i < 50; ++i) {
    const auto answer = client_->Forward(golden.RequestFor(golden.layers[0].layer));
    ASSERT_TRUE(answer.ok());
    const v1::StageMicros& us = answer->result().stages();
    EXPECT_GT(us.total(), 0);
    stages += static_cast<double>(us.decode() + us.queue() + us.stage_in() + us.route() + us.gemm() + us.combine() +
                                  us.stage_out());
    total += static_cast<double>(us.total());
  }
  EXPECT_NEAR(stages, total, 0.05 * total);
}

}  // namespace
}  // namespace expertd::testing
