// Layers that come and go while requests run.
#include <expertd/v1/admin.grpc.pb.h>
#include <gmock/gmock.h>

#include <filesystem>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "kernels/checkpoint/synth.h"
#include "kernels/engine_factory.h"
#include "server/layer_plan.h"
#include "tests/support/certificates.h"
#include "tests/unit/server/server_fixture.h"

namespace expertd::testing {
namespace {

using grpc::StatusCode;
using ::testing::HasSubstr;

// Loads wait while the gate is closed.
class GatedLoads : public GatedEngine {
 public:
  absl::StatusOr<LayerPtr> LoadLayer(const LayerSource& source) override {
    MutexLock lock(mutex_);
    ++loads_;
    while (!open_) changed_.Wait(mutex_);
    return GatedEngine::LoadLayer(source);
  }
  void SetOpen(bool open) {
    MutexLock lock(mutex_);
    open_ = open;
    changed_.NotifyAll();
  }
  int loads() const {
    MutexLock lock(mutex_);
    return loads_;
  }

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  bool open_ ABSL_GUARDED_BY(mutex_) = true;
  int loads_ ABSL_GUARDED_BY(mutex_) = 0;
};

class AdminTest : public ServerTest {
 protected:
  AdminTest() {
    options_.model_root = folder_.Path("");
    options_.max_hidden_size = kHidden;
  }
  void TearDown() override {
    if (engine_ != nullptr) engine_->Open();
    engine_ = nullptr;
    server_.reset();
  }

  // A checkpoint of two layers below the model root.
  void Synth(const std::string& name, std::uint64_t seed, std::int64_t hidden = kHidden) const {
    const auto plan = PlanSynth(
        {.like = "olmoe", .layers = 2, .experts = 8, .hidden_size = hidden, .intermediate_size = 32, .seed = seed});
    ASSERT_TRUE(plan.ok()) << plan.status();
    const absl::Status written = WriteSynth(*plan, folder_.Path(name), {.threads = 1});
    ASSERT_TRUE(written.ok()) << written;
  }

  void StartWith(std::unique_ptr<Engine> engine) {
    Start(std::move(engine), TinyPlan(), /*load=*/true);
    admin_ = v1::Admin::NewStub(channel_);
  }
  void StartWithNull() { StartWith(std::make_unique<GatedEngine>()); }

  grpc::Status Load(const v1::LoadCheckpointRequest& request, v1::LoadCheckpointResponse* response,
                    std::chrono::milliseconds timeout = std::chrono::seconds(10)) const {
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + timeout);
    return admin_->LoadCheckpoint(&context, request, response);
  }
  grpc::Status Load(const std::string& path, const std::string& model, bool replace = false) const {
    v1::LoadCheckpointRequest request;
    request.set_path(path);
    request.set_model(model);
    request.set_replace(replace);
    v1::LoadCheckpointResponse response;
    return Load(request, &response);
  }
  grpc::Status Unload(const std::string& model, std::optional<std::uint32_t> layer = std::nullopt) const {
    grpc::ClientContext context;
    v1::UnloadLayerRequest request;
    request.set_model(model);
    if (layer) request.set_layer(*layer);
    v1::UnloadLayerResponse response;
    return admin_->UnloadLayer(&context, request, &response);
  }
  std::string Layers() const {
    grpc::ClientContext context;
    v1::ListLayersResponse response;
    EXPECT_TRUE(stub_->ListLayers(&context, {}, &response).ok());
    std::string names;
    for (const v1::Layer& layer : response.layers()) absl::StrAppend(&names, layer.model(), "/", layer.layer(), " ");
    return names;
  }

  const TestFolder folder_;
  std::unique_ptr<v1::Admin::Stub> admin_;
};

TEST_F(AdminTest, ReplacingUnderLoadLosesNoRequestAndMixesNoAnswer) {
  Synth("a", 1);
  Synth("b", 2);
  auto engine = MakeEngine("cpu", {.threads = 1, .max_batch_rows = 256});
  ASSERT_TRUE(engine.ok()) << engine.status();
  StartWith(*std::move(engine));
  ASSERT_TRUE(Load("a", "tiny", /*replace=*/true).ok());

  std::atomic<bool> stop = false;
  std::atomic<int> failed = 0, answered = 0;
  Mutex mutex;
  std::map<std::string, std::string> outputs;  // by fingerprint
  const auto call = [&] {
    const v1::ForwardRequest request = MakeRequest(5, 4);
    while (!stop) {
      v1::ForwardResponse response;
      if (!Forward(request, &response).ok()) {
        ++failed;
        continue;
      }
      ++answered;
      MutexLock lock(mutex);
      const auto [known, first] = outputs.emplace(response.result().fingerprint(), response.result().output());
      if (!first && known->second != response.result().output()) ++failed;
    }
  };
  std::vector<std::thread> callers;
  for (int i = 0; i < 3; ++i) callers.emplace_back(call);
  for (int i = 0; i < 20; ++i) {
    const grpc::Status status = Load(i % 2 == 0 ? "b" : "a", "tiny", /*replace=*/true);
    EXPECT_TRUE(status.ok()) << status.error_message();
    const int before = answered;
    EXPECT_TRUE(Eventually([&] { return answered > before + 3; }));
  }
  stop = true;
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(failed, 0);
  EXPECT_EQ(outputs.size(), 2) << "the answers of two checkpoints, each always the same";
  EXPECT_EQ(Layers(), "tiny/0 tiny/1 ");
}

TEST_F(AdminTest, LayersComeAndGoWithTheirHealthAndTheirSeries) {
  Synth("new", 1);
  options_.expert_series = 1000;
  StartWithNull();
  constexpr char kSeries[] = R"(expertd_batch_rows_count{layer="new/0"})";
  constexpr char kExpert[] = R"(expertd_expert_rows_total{layer="new/0",expert="0"})";
  EXPECT_EQ(HealthOf("new/0"), 0);
  EXPECT_EQ(Metric(kSeries), -1);

  v1::LoadCheckpointRequest request;
  request.set_path("new");
  request.add_layers(0);
  v1::LoadCheckpointResponse loaded;
  ASSERT_TRUE(Load(request, &loaded).ok());
  ASSERT_EQ(loaded.layers_size(), 1);
  EXPECT_EQ(loaded.layers(0).model(), "new");
  EXPECT_EQ(loaded.layers(0).state(), v1::Layer::STATE_SERVING);
  EXPECT_EQ(Layers(), "new/0 tiny/0 tiny/1 ");
  EXPECT_EQ(HealthOf("new/0"), 1);
  v1::ForwardRequest forward = MakeRequest(1, 2);
  forward.set_model("new");
  v1::ForwardResponse response;
  EXPECT_TRUE(Forward(forward, &response).ok());
  EXPECT_EQ(response.result().fingerprint(), loaded.layers(0).fingerprint());
  EXPECT_EQ(Metric(kSeries), 1);
  EXPECT_GE(Metric(kExpert), 0);

  EXPECT_TRUE(Unload("new", 0).ok());
  EXPECT_EQ(Layers(), "tiny/0 tiny/1 ");
  EXPECT_EQ(HealthOf("new/0"), 2);
  EXPECT_EQ(Forward(forward, &response).error_code(), StatusCode::NOT_FOUND);
  EXPECT_EQ(Metric(kSeries), -1);
  EXPECT_EQ(Metric(kExpert), -1);
  EXPECT_EQ(Unload("new", 0).error_code(), StatusCode::NOT_FOUND);
  EXPECT_TRUE(Unload("tiny").ok());
  EXPECT_EQ(Layers(), "");
  EXPECT_EQ(HealthOf(""), 1) << "run-time changes do not touch it";
  EXPECT_TRUE(Load("new", "").ok()) << "again";
  EXPECT_EQ(HealthOf("new/0"), 1);
  EXPECT_EQ(Metric(kSeries), 0);
}

TEST_F(AdminTest, AnAdmittedRequestRunsOnALayerThatWasUnloaded) {
  options_.inline_batch_us = 0;
  auto engine = std::make_unique<GatedEngine>();
  engine_ = engine.get();
  StartWith(std::move(engine));
  engine_->Close();
  grpc::ClientContext context;
  const auto stream = stub_->ForwardStream(&context);
  v1::StreamRequest request;
  for (std::uint64_t id = 1; id <= 2; ++id) {  // one runs, one waits
    *request.mutable_forward() = MakeRequest(id, 64);
    ASSERT_TRUE(stream->Write(request));
    ASSERT_TRUE(engine_->WaitForBatches(1));
  }
  EXPECT_TRUE(Eventually([&] { return Metric("expertd_rows_in_flight") == 128; }));
  EXPECT_TRUE(Unload("tiny").ok());
  *request.mutable_forward() = MakeRequest(3, 64);
  v1::ForwardResponse response;
  ASSERT_TRUE(stream->Write(request) && stream->Read(&response));
  EXPECT_EQ(response.request_id(), 3);
  EXPECT_EQ(response.error().code(), StatusCode::NOT_FOUND) << "came after it";
  engine_->Open();
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(stream->Read(&response));
    EXPECT_EQ(response.result().output(), MakeRequest(response.request_id(), 64).hidden_states());
  }
  stream->WritesDone();
  EXPECT_TRUE(stream->Finish().ok());
}

TEST_F(AdminTest, RefusalsChangeNothing) {
  Synth("good", 1);
  Synth("wide", 1, 2 * kHidden);
  Synth("broken", 1);
  for (const auto& entry : std::filesystem::directory_iterator(folder_.Path("broken"))) {
    if (entry.path().extension() == ".safetensors") std::filesystem::resize_file(entry.path(), entry.file_size() - 1);
  }
  StartWithNull();
  const struct {
    const char* path;
    const char* model;
    StatusCode code;
    const char* message;
  } cases[] = {
      {"../good", "", StatusCode::INVALID_ARGUMENT, "'..'"},
      {"/etc", "", StatusCode::INVALID_ARGUMENT, "absolute"},
      {"none", "", StatusCode::NOT_FOUND, "no such folder"},
      {"good", "a/b", StatusCode::INVALID_ARGUMENT, "model:"},
      {"good", "tiny", StatusCode::ALREADY_EXISTS, "tiny/0"},
      {"wide", "", StatusCode::FAILED_PRECONDITION, "--max-hidden-size 64"},
      {"broken", "", StatusCode::INVALID_ARGUMENT, "safetensors"},
  };
  for (const auto& c : cases) {
    const grpc::Status status = Load(c.path, c.model);
    EXPECT_EQ(status.error_code(), c.code) << c.path << ": " << status.error_message();
    EXPECT_THAT(status.error_message(), HasSubstr(c.message)) << c.path;
  }
  v1::LoadCheckpointRequest request;
  v1::LoadCheckpointResponse response;
  request.set_path("good");
  request.add_layers(7);
  EXPECT_EQ(Load(request, &response).error_code(), StatusCode::NOT_FOUND);
  request.set_layers(0, 1);
  request.add_layers(1);
  EXPECT_EQ(Load(request, &response).error_code(), StatusCode::INVALID_ARGUMENT) << "twice";
  EXPECT_EQ(Layers(), "tiny/0 tiny/1 ");
  EXPECT_TRUE(Load("good", "").ok());
}

TEST_F(AdminTest, WhatDoesNotFitBesideTheOldIsRefused) {
  const auto plan = PlanSynth(
      {.like = "olmoe", .layers = 1, .experts = 16, .hidden_size = kHidden, .intermediate_size = 512});  // 3 MiB
  ASSERT_TRUE(plan.ok() && WriteSynth(*plan, folder_.Path("large"), {.threads = 1}).ok());
  options_.weight_budget_mib = 5;
  auto engine = MakeEngine("cpu", {.threads = 1, .max_batch_rows = 256});
  ASSERT_TRUE(engine.ok());
  StartWith(*std::move(engine));
  ASSERT_TRUE(Load("large", "one").ok());
  for (const bool replace : {false, true}) {
    const grpc::Status status = Load("large", replace ? "one" : "two", replace);
    EXPECT_EQ(status.error_code(), StatusCode::FAILED_PRECONDITION);
    EXPECT_THAT(status.error_message(), HasSubstr("--weight-budget-mib 5"));
  }
  ASSERT_TRUE(Unload("one").ok());
  EXPECT_TRUE(Load("large", "two").ok()) << "its place is free again";
}

TEST_F(AdminTest, OneAtATimeAndGivenUpWithTheCaller) {
  Synth("new", 1);
  auto engine = std::make_unique<GatedLoads>();
  GatedLoads* gate = engine.get();
  StartWith(std::move(engine));
  const int configured = gate->loads();
  gate->SetOpen(false);
  v1::LoadCheckpointRequest request;
  request.set_path("new");
  grpc::Status first;
  grpc::ClientContext context;
  v1::LoadCheckpointResponse response;
  std::thread caller([&] { first = admin_->LoadCheckpoint(&context, request, &response); });
  EXPECT_TRUE(Eventually([&] { return gate->loads() == configured + 1; }));
  EXPECT_EQ(Load("new", "").error_code(), StatusCode::ABORTED);
  EXPECT_EQ(Unload("tiny").error_code(), StatusCode::ABORTED);
  context.TryCancel();
  caller.join();
  EXPECT_EQ(first.error_code(), StatusCode::CANCELLED);
  // The cancellation and these calls travel on one connection: when they are answered, the server has read it, and its
  // threads have had time to act on it.
  for (int i = 0; i < 50; ++i) EXPECT_EQ(Unload("tiny").error_code(), StatusCode::ABORTED);
  gate->SetOpen(true);
  EXPECT_TRUE(Eventually([&] { return Unload("tiny", 1).ok(); })) << "the place is free again";
  EXPECT_EQ(Layers(), "tiny/0 ");
  EXPECT_EQ(gate->loads(), configured + 1) << "the second layer was not loaded";
}

TEST_F(AdminTest, NeedsTheRoleAndAModelRoot) {
  Synth("new", 1);
  options_.tokens_file =
      folder_.Write("tokens", "plain:infer-0123456789 infer team\nplain:admin-0123456789 admin ops\n");
  StartWithNull();
  const auto load_as = [&](const std::string& token) {
    grpc::ClientContext context;
    if (!token.empty()) context.AddMetadata("authorization", "Bearer " + token);
    v1::LoadCheckpointRequest request;
    request.set_path("new");
    v1::LoadCheckpointResponse response;
    return admin_->LoadCheckpoint(&context, request, &response).error_code();
  };
  EXPECT_EQ(load_as(""), StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(load_as("infer-0123456789"), StatusCode::PERMISSION_DENIED);
  EXPECT_EQ(load_as("admin-0123456789"), StatusCode::OK);
  EXPECT_EQ(Metric(R"(expertd_requests_total{code="OK",rpc="LoadCheckpoint"})"), 1);

  server_.reset();
  options_.tokens_file.clear();
  options_.model_root.clear();
  StartWithNull();
  EXPECT_EQ(Load("new", "").error_code(), StatusCode::UNIMPLEMENTED);
}

TEST_F(AdminTest, MayStartWithNothing) {
  Synth("new", 1);
  options_.checkpoints.clear();
  Start(std::make_unique<GatedEngine>(), {}, /*load=*/true);
  admin_ = v1::Admin::NewStub(channel_);
  EXPECT_EQ(HealthOf(""), 1);
  EXPECT_TRUE(Load("new", "tiny").ok());
  v1::ForwardResponse response;
  EXPECT_TRUE(Forward(MakeRequest(1, 3), &response).ok());
}

}  // namespace
}  // namespace expertd::testing
