#include <gmock/gmock.h>

#include <cmath>

#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using ::testing::HasSubstr;

class ServerInfoTest : public ServerTest {
 protected:
  v1::ListLayersResponse Layers() {
    grpc::ClientContext context;
    v1::ListLayersResponse layers;
    EXPECT_TRUE(stub_->ListLayers(&context, {}, &layers).ok());
    return layers;
  }
};

TEST_F(ServerInfoTest, ListsLayersFromThePlanToServing) {
  Start(/*load=*/false);
  v1::ListLayersResponse layers = Layers();
  ASSERT_EQ(layers.layers_size(), 2);
  EXPECT_EQ(layers.layers(1).state(), v1::Layer::STATE_LOADING);
  EXPECT_EQ(layers.layers(1).fingerprint(), "");
  ASSERT_TRUE(server_->Load([] { return false; }).ok());
  layers = Layers();
  for (int i = 0; i < 2; ++i) {
    const v1::Layer& layer = layers.layers(i);
    EXPECT_EQ(layer.model(), "tiny");
    EXPECT_EQ(layer.layer(), i);
    EXPECT_EQ(layer.state(), v1::Layer::STATE_SERVING);
    EXPECT_EQ(layer.hidden_size(), kHidden);
    EXPECT_EQ(layer.num_experts(), 4);
    EXPECT_EQ(layer.experts_per_token(), 2);
    EXPECT_EQ(layer.weight_dtype(), "bf16");
    EXPECT_EQ(layer.path(), "null");
    EXPECT_NE(layer.fingerprint(), "");
  }
  EXPECT_NE(layers.layers(0).fingerprint(), layers.layers(1).fingerprint());
  // Listed fingerprints are the ones that requests are held against.
  v1::ForwardRequest request = MakeRequest(1, 1);
  request.set_expected_fingerprint(layers.layers(0).fingerprint());
  v1::ForwardResponse response;
  ASSERT_TRUE(Forward(request, &response).ok());
  EXPECT_EQ(response.result().fingerprint(), layers.layers(0).fingerprint());
}

TEST_F(ServerInfoTest, TellsItsLimits) {
  options_.max_in_flight_per_stream = 7;
  Start();
  grpc::ClientContext context;
  v1::GetServerInfoResponse info;
  ASSERT_TRUE(stub_->GetServerInfo(&context, {}, &info).ok());
  EXPECT_EQ(info.version(), EXPERTD_VERSION);
  EXPECT_THAT(info.device(), HasSubstr("null"));
  EXPECT_EQ(info.max_rows_per_request(), 1024);
  EXPECT_EQ(info.max_rows_per_batch(), 1024);
  EXPECT_EQ(info.max_in_flight_per_stream(), 7);
  EXPECT_EQ(info.default_timeout_us(), 30'000'000);
  EXPECT_GE(info.max_message_bytes(), 1024 * kHidden * 4);
}

TEST_F(ServerInfoTest, MessagesThatGrpcCannotCarryAreRefusedAtTheStart) {
  options_.max_rows_per_request = 1 << 20;
  LayerSpec wide;
  wide.hidden_size = 7168;
  const auto limit = MaxMessageBytes(options_, 64, {{wide, nullptr}});
  EXPECT_TRUE(absl::IsInvalidArgument(limit.status())) << limit.status();
  EXPECT_THAT(std::string(limit.status().message()), HasSubstr("--max-rows-per-request 1048576: at most "));
}

TEST_F(ServerInfoTest, ASecondServerCannotShareAPort) {
  Start();
  ServerOptions second = options_;
  second.metrics_address.clear();
  second.listen = server_->addresses().service;
  const auto server = Server::Start(second, std::make_unique<GatedEngine>(), TinyPlan(), {});
  EXPECT_TRUE(absl::IsUnavailable(server.status())) << server.status();
  EXPECT_THAT(std::string(server.status().message()), HasSubstr("cannot listen on " + second.listen));
  second.listen = "127.0.0.1:0";
  second.metrics_address = server_->addresses().metrics;
  EXPECT_TRUE(absl::IsUnavailable(Server::Start(second, std::make_unique<GatedEngine>(), TinyPlan(), {}).status()));
}

TEST_F(ServerInfoTest, TwoLayersOfOneNameAreRefused) {
  std::vector<PlannedLayer> plan = TinyPlan();
  plan.push_back(plan.front());
  const auto server = Server::Start(options_, std::make_unique<GatedEngine>(), std::move(plan), {});
  EXPECT_TRUE(absl::IsAlreadyExists(server.status())) << server.status();
}

TEST_F(ServerInfoTest, MetricsTellWhatHappened) {
  Start();
  v1::ForwardResponse response;
  float total = 0;
  for (std::uint64_t id = 1; id <= 3; ++id) {
    ASSERT_TRUE(Forward(MakeRequest(id, 8), &response).ok());
    total += response.result().stages().total();
  }
  EXPECT_EQ(Metric("expertd_requests_total{code=\"OK\",rpc=\"Forward\"}"), 3);
  EXPECT_EQ(Metric("expertd_request_seconds_count{rpc=\"Forward\"}"), 3);
  EXPECT_GE(Metric("expertd_request_seconds_sum{rpc=\"Forward\"}") * 1e6, total * 0.99);
  EXPECT_EQ(Metric("expertd_batch_rows_sum{layer=\"tiny/0\"}"), 24);
  EXPECT_EQ(Metric("expertd_batch_requests_count{layer=\"tiny/0\"}"), 3);
  EXPECT_EQ(Metric("expertd_batch_requests_count{layer=\"tiny/1\"}"), 0);
  EXPECT_EQ(Metric("expertd_queue_rows{layer=\"tiny/1\"}"), 0);
  EXPECT_EQ(Metric("expertd_queue_oldest_seconds{layer=\"tiny/1\"}"), 0);
  EXPECT_EQ(Metric("expertd_weight_bytes{layer=\"tiny/0\"}"), 0);
  for (const char* stage : {"decode", "queue", "stage_in", "route", "gemm", "combine", "stage_out"}) {
    EXPECT_EQ(Metric(std::string("expertd_stage_seconds_count{stage=\"") + stage + "\"}"), 3) << stage;
  }
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_stage_seconds_count{stage=\"write\"}") == 3; }));
  EXPECT_THAT(Scrape(),
              HasSubstr("expertd_build_info{device=\"null\",numerics_id=\"null\",version=\"" EXPERTD_VERSION));
}

}  // namespace
}  // namespace expertd::testing
