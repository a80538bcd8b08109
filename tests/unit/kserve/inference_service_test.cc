// The calls over a socket, with batches that the test lets go. Values and the protocol's own client: tests/python.
#include <gmock/gmock.h>
#include <inference/grpc_service.grpc.pb.h>

#include <chrono>
#include <thread>

#include "tests/unit/kserve/shm_object.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using inference::GRPCInferenceService;
using inference::ModelInferRequest;
using inference::ModelInferResponse;
using ::testing::HasSubstr;

ModelInferRequest Request(const std::string& id, std::int64_t rows = 1) {
  ModelInferRequest request;
  request.set_model_name("tiny/0");
  request.set_id(id);
  auto& input = *request.add_inputs();
  input.set_name("hidden_states");
  input.set_datatype("BF16");
  input.add_shape(rows);
  input.add_shape(kHidden);
  request.add_raw_input_contents(std::string(static_cast<std::size_t>(rows * kHidden * 2), '\1'));
  return request;
}

class InferenceServiceTest : public ServerTest {
 protected:
  void Begin(bool load = true) {
    Start(load);
    inference_ = GRPCInferenceService::NewStub(channel_);
  }
  std::unique_ptr<grpc::ClientContext> Context() {
    auto context = std::make_unique<grpc::ClientContext>();
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
    return context;
  }
  template <class Request, class Response>
  grpc::Status Ask(grpc::Status (GRPCInferenceService::Stub::*call)(grpc::ClientContext*, const Request&, Response*),
                   const Request& request, Response* response) {
    return (inference_.get()->*call)(Context().get(), request, response);
  }
  grpc::Status Infer(const ModelInferRequest& request, ModelInferResponse* response) {
    return Ask(&GRPCInferenceService::Stub::ModelInfer, request, response);
  }
  bool ModelIsReady(const std::string& name) {
    inference::ModelReadyRequest request;
    inference::ModelReadyResponse response;
    request.set_name(name);
    EXPECT_TRUE(Ask(&GRPCInferenceService::Stub::ModelReady, request, &response).ok());
    return response.ready();
  }
  bool ServerIsReady() {
    inference::ServerReadyResponse response;
    EXPECT_TRUE(Ask(&GRPCInferenceService::Stub::ServerReady, {}, &response).ok());
    return response.ready();
  }
  grpc::Status Register(const std::string& name, const ShmObject& object, std::size_t size) {
    inference::SystemSharedMemoryRegisterRequest request;
    request.set_name(name);
    request.set_key(object.key());
    request.set_byte_size(size);
    inference::SystemSharedMemoryRegisterResponse response;
    return Ask(&GRPCInferenceService::Stub::SystemSharedMemoryRegister, request, &response);
  }

  std::unique_ptr<GRPCInferenceService::Stub> inference_;
};

TEST_F(InferenceServiceTest, ReadyFollowsTheLayersAndTheDrain) {
  Begin(/*load=*/false);
  EXPECT_FALSE(ServerIsReady());
  EXPECT_FALSE(ModelIsReady("tiny/0"));
  ModelInferResponse response;
  EXPECT_EQ(Infer(Request("a"), &response).error_code(), grpc::StatusCode::UNAVAILABLE);
  inference::ModelMetadataRequest metadata;
  metadata.set_name("tiny/0");
  inference::ModelMetadataResponse described;
  EXPECT_TRUE(Ask(&GRPCInferenceService::Stub::ModelMetadata, metadata, &described).ok()) << "also while it loads";

  ASSERT_TRUE(server_->Load([] { return false; }).ok());
  EXPECT_TRUE(ServerIsReady());
  EXPECT_TRUE(ModelIsReady("tiny/0"));
  EXPECT_FALSE(ModelIsReady("tiny/2"));
  EXPECT_FALSE(ModelIsReady("tiny"));
  EXPECT_TRUE(Infer(Request("a"), &response).ok());

  server_->LeaveHealth();
  EXPECT_FALSE(ServerIsReady());
  EXPECT_FALSE(ModelIsReady("tiny/0"));
  inference::ServerLiveResponse live;
  EXPECT_TRUE(Ask(&GRPCInferenceService::Stub::ServerLive, {}, &live).ok());
  EXPECT_TRUE(live.live());
}

TEST_F(InferenceServiceTest, RequestsAreCountedByRpcAndLayer) {
  options_.metrics_address = "127.0.0.1:0";
  Begin();
  ModelInferResponse response;
  ASSERT_TRUE(Infer(Request("a", 3), &response).ok());
  ModelInferRequest bad = Request("b");
  bad.set_model_name("nobody/0");
  EXPECT_EQ(Infer(bad, &response).error_code(), grpc::StatusCode::NOT_FOUND);
  EXPECT_EQ(Metric("expertd_requests_total{code=\"OK\",rpc=\"ModelInfer\"}"), 1);
  EXPECT_EQ(Metric("expertd_requests_total{code=\"NOT_FOUND\",rpc=\"ModelInfer\"}"), 1);
  engine_->FailWith(absl::InternalError("gone"));
  EXPECT_FALSE(Infer(Request("c"), &response).ok());

  inference::ModelStatisticsResponse all;
  ASSERT_TRUE(Ask(&GRPCInferenceService::Stub::ModelStatistics, {}, &all).ok());
  ASSERT_EQ(all.model_stats_size(), 2);
  const inference::ModelStatistics& first = all.model_stats(0);
  EXPECT_EQ(first.name(), "tiny/0");
  EXPECT_EQ(first.inference_count(), 3u);
  EXPECT_EQ(first.inference_stats().success().count(), 1u);
  EXPECT_GT(first.inference_stats().success().ns(), 0u);
  EXPECT_EQ(first.inference_stats().fail().count(), 1u);
  EXPECT_GT(first.last_inference(), 0u);
  EXPECT_EQ(all.model_stats(1).inference_count(), 0u);
}

TEST_F(InferenceServiceTest, AStreamAnswersInTheOrderOfItsRequests) {
  Begin();
  const auto context = Context();
  const auto stream = inference_->ModelStreamInfer(context.get());
  engine_->Close();
  ASSERT_TRUE(stream->Write(Request("first")));
  ASSERT_TRUE(engine_->WaitForBatches(1));
  ModelInferRequest refused = Request("second");  // at once, while the first still runs
  refused.set_model_name("nobody/0");
  ASSERT_TRUE(stream->Write(refused));
  ASSERT_TRUE(stream->Write(Request("third")));
  ASSERT_TRUE(stream->WritesDone());
  engine_->Open();
  inference::ModelStreamInferResponse response;
  for (const char* id : {"first", "second", "third"}) {
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.infer_response().id(), id);
    EXPECT_EQ(response.error_message().empty(), id != std::string("second")) << response.error_message();
    if (!response.error_message().empty()) {
      EXPECT_THAT(response.error_message(), HasSubstr("NOT_FOUND: model 'nobody'"));
    }
  }
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

// Two answers that are due at once on a connection where nothing else happens: the first write also sends the headers.
TEST_F(InferenceServiceTest, AStreamsFirstAnswersNeedNoOtherTraffic) {
  options_.metrics_address = "127.0.0.1:0";
  Begin();
  const auto context = Context();
  const auto stream = inference_->ModelStreamInfer(context.get());
  engine_->Close();
  ASSERT_TRUE(stream->Write(Request("first")));
  ModelInferRequest refused = Request("second");
  refused.set_model_name("nobody/0");
  ASSERT_TRUE(stream->Write(refused));
  ASSERT_TRUE(stream->WritesDone());
  const std::string refusals = "expertd_requests_total{code=\"NOT_FOUND\",rpc=\"ModelStreamInfer\"}";
  ASSERT_TRUE(Eventually([&] { return Metric(refusals) == 1; }));
  std::this_thread::sleep_for(std::chrono::milliseconds(100));  // until the transport's own frames are out
  engine_->Open();
  inference::ModelStreamInferResponse response;
  EXPECT_TRUE(stream->Read(&response));
  EXPECT_TRUE(stream->Read(&response));
  EXPECT_FALSE(stream->Read(&response));
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(InferenceServiceTest, SharedMemoryNeedsItsFlag) {
  Begin();
  ShmObject object(1024);
  const grpc::Status status = Register("r", object, 1024);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("--kserve-shared-memory"));
}

TEST_F(InferenceServiceTest, AnOutputRegionThatWasTruncatedFailsItsRequestOnly) {
  options_.kserve_shared_memory = true;
  Begin();
  constexpr std::size_t kBytes = kHidden * 2;
  ShmObject object(kBytes);
  ASSERT_TRUE(Register("r", object, kBytes).ok());
  ModelInferRequest request = Request("a");
  request.add_outputs()->set_name("output");
  auto& parameters = *request.mutable_outputs(0)->mutable_parameters();
  parameters["shared_memory_region"].set_string_param("r");
  parameters["shared_memory_byte_size"].set_int64_param(kBytes);
  ModelInferResponse response;
  ASSERT_TRUE(Infer(request, &response).ok());
  EXPECT_EQ(object.Get(0, kBytes), request.raw_input_contents(0)) << "the engine copies rows";

  object.Resize(1);
  const grpc::Status status = Infer(request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION) << status.error_message();
  EXPECT_TRUE(Infer(Request("b"), &response).ok());
}

}  // namespace
}  // namespace expertd::testing
