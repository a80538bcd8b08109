#include "tests/unit/client/fake_server.h"

#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/server_builder.h>

#include <atomic>
#include <deque>
#include <functional>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "expertd/v1/expertd.grpc.pb.h"
#include "kernels/base/mutex.h"

namespace expertd::client {
namespace {

v1::ForwardResponse Copy(const v1::ForwardRequest& request) {
  v1::ForwardResponse response;
  response.set_request_id(request.request_id());
  response.mutable_result()->set_rows(request.rows());
  response.mutable_result()->set_dtype(request.dtype());
  response.mutable_result()->set_batch_rows(static_cast<std::uint32_t>(request.rows()));
  response.mutable_result()->set_batch_requests(1);
  response.mutable_result()->mutable_stages()->set_gemm(2);
  response.mutable_result()->mutable_stages()->set_total(3);
  response.mutable_result()->set_output(request.hidden_states());
  return response;
}

v1::ForwardResponse Refusal(std::uint64_t id, grpc::StatusCode code, std::uint64_t retry_after_us) {
  v1::ForwardResponse response;
  response.set_request_id(id);
  response.mutable_error()->set_code(code);
  response.mutable_error()->set_message("refused");
  response.mutable_error()->set_retry_after_us(retry_after_us);
  return response;
}

// Never finishes by itself.
class HeldCall final : public grpc::ServerUnaryReactor {
  void OnCancel() override { Finish(grpc::Status(grpc::StatusCode::CANCELLED, "cancelled")); }
  void OnDone() override { delete this; }
};

using Clock = std::chrono::steady_clock;

// What requests came.
class Log {
 public:
  // Whether this one of `twice` is refused.
  bool Refuses() { return twice_.fetch_add(1) % 3 != 2; }
  void Count() { ++requests_; }
  int requests() const { return requests_; }

  void Authorized(const grpc::CallbackServerContext& context) {
    const auto& metadata = context.client_metadata();
    const auto found = metadata.find("authorization");
    MutexLock lock(mutex_);
    authorization_ = found == metadata.end() ? "" : std::string(found->second.data(), found->second.size());
  }
  std::string authorization() {
    MutexLock lock(mutex_);
    return authorization_;
  }

 private:
  std::atomic<int> twice_{0}, requests_{0};
  Mutex mutex_;
  std::string authorization_ ABSL_GUARDED_BY(mutex_);
};

// Lets answers through, or holds them until the stop is over.
class Gate {
 public:
  virtual ~Gate() = default;
  virtual void Pass(std::function<void()> answer) = 0;
};

class FakeStream final : public grpc::ServerBidiReactor<v1::StreamRequest, v1::ForwardResponse> {
 public:
  FakeStream(Gate& gate, Log& log) : gate_(gate), log_(log) { StartRead(&request_); }

 private:
  void OnReadDone(bool ok) override {
    {
      MutexLock lock(mutex_);
      if (ok) {
        Handle();
      } else {
        half_closed_ = true;
      }
      if (ended_ || half_closed_) return FinishWhenIdle();
    }
    StartRead(&request_);
  }

  void Handle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (request_.has_cancel()) {
      Answer(Refusal(request_.cancel().request_id(), grpc::StatusCode::CANCELLED, 0));
      return;
    }
    const v1::ForwardRequest& forward = request_.forward();
    log_.Count();
    const bool refused = forward.model() == "full" || (forward.model() == "twice" && log_.Refuses());
    if (refused) return Answer(Refusal(forward.request_id(), grpc::StatusCode::RESOURCE_EXHAUSTED, 7000));
    if (forward.model() == "copy" || forward.model() == "twice") Answer(Copy(forward));
    if (forward.model() == "pause") return Delay(Copy(forward));
    if (forward.model() == "end") ended_ = true;
    if (forward.model() == "flip") {
      v1::ForwardResponse response = Copy(forward);
      response.mutable_result()->mutable_output()->back() ^= 1;
      Answer(std::move(response));
    }
  }

  void Answer(v1::ForwardResponse response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    answers_.push_back(std::move(response));
    if (answers_.size() == 1) StartWrite(&answers_.front());
  }

  // The client waits for all its answers before it ends the stream: it outlives them.
  void Delay(v1::ForwardResponse response) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    mutex_.Unlock();
    gate_.Pass([this, response = std::move(response)]() mutable {
      MutexLock lock(mutex_);
      Answer(std::move(response));
    });
    mutex_.Lock();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    answers_.pop_front();
    if (!ok) answers_.clear();
    if (!answers_.empty()) StartWrite(&answers_.front());
    FinishWhenIdle();
  }

  void FinishWhenIdle() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!answers_.empty() || finished_ || (!ended_ && !half_closed_)) return;
    finished_ = true;
    Finish(ended_ ? grpc::Status(grpc::StatusCode::UNAVAILABLE, "ended") : grpc::Status::OK);
  }

  void OnDone() override { delete this; }

  Gate& gate_;
  Log& log_;
  v1::StreamRequest request_;
  Mutex mutex_;
  std::deque<v1::ForwardResponse> answers_ ABSL_GUARDED_BY(mutex_);
  bool half_closed_ ABSL_GUARDED_BY(mutex_) = false;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace

class FakeServer::Stops final : public Gate {
 public:
  Stops() : thread_([this] { Run(); }) {}
  ~Stops() override {
    {
      MutexLock lock(mutex_);
      over_ = true;
      changed_.NotifyAll();
    }
    thread_.join();
  }

  void Pass(std::function<void()> answer) override {
    {
      MutexLock lock(mutex_);
      if (stopped_) return held_.push_back(std::move(answer));
    }
    answer();
  }

  std::vector<Pause> pauses() {
    MutexLock lock(mutex_);
    return pauses_;
  }

 private:
  void Run() {
    const auto start = Clock::now();
    for (auto period = start;; period += kPausePeriod) {
      const auto begin = Sleep(period + kPausePeriod - kPauseLength, true);
      if (!begin.has_value()) return;
      const bool going_on = Sleep(period + kPausePeriod, false).has_value();
      std::vector<std::function<void()>> held;
      {
        MutexLock lock(mutex_);
        held.swap(held_);
      }
      // The end is when the first tenth, which waited the longest, has gone out: this thread may have been held up too.
      const std::size_t tenth = held.size() / 10;
      for (std::size_t i = 0; i < held.size(); ++i) {
        if (i == tenth) Note({*begin - start, Clock::now() - start});
        held[i]();
      }
      if (!going_on) return;
    }
  }

  // Until `when`, then stops or goes on: the moment at which it did. Absent: the server is going away.
  std::optional<Clock::time_point> Sleep(Clock::time_point when, bool stop) {
    MutexLock lock(mutex_);
    while (!over_ && Clock::now() < when) changed_.WaitUntil(mutex_, when);
    stopped_ = stop && !over_;
    return over_ ? std::nullopt : std::optional(Clock::now());
  }

  void Note(const Pause& pause) {
    MutexLock lock(mutex_);
    pauses_.push_back(pause);
  }

  Mutex mutex_;
  CondVar changed_;
  bool stopped_ ABSL_GUARDED_BY(mutex_) = false;
  bool over_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::function<void()>> held_ ABSL_GUARDED_BY(mutex_);
  std::vector<Pause> pauses_ ABSL_GUARDED_BY(mutex_);
  std::thread thread_;
};

class FakeServer::Service final : public v1::Expertd::CallbackService {
 public:
  Service(Gate& gate, Log& log) : gate_(gate), log_(log) {}

 private:
  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const v1::ForwardRequest* request,
                                    v1::ForwardResponse* response) override {
    log_.Count();
    log_.Authorized(*context);
    if (request->model() == "hold") return new HeldCall;
    auto* reactor = context->DefaultReactor();
    if (request->model() == "full" || (request->model() == "twice" && log_.Refuses())) {
      context->AddTrailingMetadata("grpc-retry-pushback-ms", "7");
      reactor->Finish(grpc::Status(grpc::StatusCode::RESOURCE_EXHAUSTED, "refused"));
    } else if (request->model() == "pause") {
      *response = Copy(*request);
      gate_.Pass([reactor] { reactor->Finish(grpc::Status::OK); });
    } else {
      *response = Copy(*request);
      reactor->Finish(grpc::Status::OK);
    }
    return reactor;
  }

  grpc::ServerBidiReactor<v1::StreamRequest, v1::ForwardResponse>* ForwardStream(
      grpc::CallbackServerContext* context) override {
    log_.Authorized(*context);
    return new FakeStream(gate_, log_);
  }

  grpc::ServerUnaryReactor* ListLayers(grpc::CallbackServerContext* context, const v1::ListLayersRequest*,
                                       v1::ListLayersResponse* response) override {
    for (const char* model : {"loading", "copy", "full", "flip", "end", "pause", "twice"})
      *response->add_layers() = LayerOf(model);
    response->mutable_layers(0)->set_state(v1::Layer::STATE_LOADING);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest*,
                                          v1::GetServerInfoResponse* response) override {
    response->set_version("fake");
    response->set_max_rows_per_request(kMaxRows);
    response->set_max_in_flight_per_stream(4);
    response->set_max_message_bytes(1 << 20);
    auto* reactor = context->DefaultReactor();
    reactor->Finish(grpc::Status::OK);
    return reactor;
  }

  Gate& gate_;
  Log& log_;
};

struct FakeServer::Seen : Log {};

FakeServer::FakeServer(const std::shared_ptr<grpc::ServerCredentials>& credentials)
    : seen_(std::make_unique<Seen>()),
      stops_(std::make_unique<Stops>()),
      service_(std::make_unique<Service>(*stops_, *seen_)) {
  grpc::EnableDefaultHealthCheckService(true);
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", credentials, &port);
  builder.RegisterService(service_.get());
  server_ = builder.BuildAndStart();
  server_->GetHealthCheckService()->SetServingStatus("copy/0", false);
  address_ = absl::StrCat("127.0.0.1:", port);
}

FakeServer::~FakeServer() { server_->Shutdown(std::chrono::system_clock::now()); }

int FakeServer::requests() const { return seen_->requests(); }
std::string FakeServer::authorization() const { return seen_->authorization(); }

std::vector<FakeServer::Pause> FakeServer::pauses() const { return stops_->pauses(); }

v1::Layer FakeServer::LayerOf(const std::string& model) {
  v1::Layer layer;
  layer.set_model(model);
  layer.set_state(v1::Layer::STATE_SERVING);
  layer.set_hidden_size(8);
  layer.set_num_experts(4);
  layer.set_experts_per_token(2);
  return layer;
}

}  // namespace expertd::client
