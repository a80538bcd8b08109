#include "server/admin/admin_service.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "server/admin/model_root.h"
#include "server/grpc_status.h"
#include "server/layer_message.h"

namespace expertd {
namespace {

constexpr std::size_t kMaxModelName = 128;

absl::Status CheckModelName(const std::string& model) {
  const bool plain = std::all_of(model.begin(), model.end(),
                                 [](char c) { return absl::ascii_isgraph(static_cast<unsigned char>(c)) && c != '/'; });
  if (plain && model.size() <= kMaxModelName) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("model: a name has at most ", kMaxModelName, " visible ASCII characters and no slash"));
}

}  // namespace

// A call in progress: finished by the worker, or at once when it is refused.
class AdminService::Operation : public grpc::ServerUnaryReactor,
                                public Call,
                                public std::enable_shared_from_this<Operation> {
 public:
  Operation(AdminService& service, Rpc rpc, grpc::CallbackServerContext* context,
            std::function<absl::Status(const Stop&)> work)
      : Call(context), service_(service), rpc_(rpc), context_(context), work_(std::move(work)) {}

  void Drain() override { draining_ = true; }

  absl::Status Run() {
    absl::Status status = work_([this] { return cancelled_ || draining_; });
    return draining_ && absl::IsCancelled(status) ? DrainingError() : status;
  }

  void End(const absl::Status& status) {
    const double seconds = std::chrono::duration<double>(Clock::now() - start()).count();
    service_.metrics_.RequestDone(rpc_, status.code(), seconds);
    Finish(ToGrpcStatus(status, context_));
  }

 private:
  void OnCancel() override { cancelled_ = true; }
  void OnDone() override {
    ForgetContext();
    service_.calls_.Remove(this);
  }

  AdminService& service_;
  const Rpc rpc_;
  grpc::CallbackServerContext* const context_;  // until Finish
  const std::function<absl::Status(const Stop&)> work_;
  std::atomic<bool> cancelled_ = false;
  std::atomic<bool> draining_ = false;
};

AdminService::~AdminService() {
  MutexLock lock(mutex_);
  if (worker_.joinable()) worker_.join();
}

void AdminService::SetReady() {
  MutexLock lock(mutex_);
  ready_ = true;
}

grpc::ServerUnaryReactor* AdminService::Start(Rpc rpc, grpc::CallbackServerContext* context,
                                              std::function<absl::Status(const Stop&)> work) {
  const auto refuse = [&](const absl::Status& refusal) {
    metrics_.Rejected(refusal.code());
    metrics_.RequestDone(rpc, refusal.code(), 0);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    reactor->Finish(ToGrpcStatus(refusal, context));
    return reactor;
  };
  const absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kAdmin);
  if (!caller.ok()) return refuse(caller.status());
  auto operation = std::make_shared<Operation>(*this, rpc, context, std::move(work));
  if (!calls_.Add(operation)) return refuse(DrainingError());
  if (absl::Status status = Begin(operation); !status.ok()) {
    metrics_.Rejected(status.code());
    operation->End(status);
  }
  return operation.get();
}

absl::Status AdminService::Begin(const std::shared_ptr<Operation>& operation) {
  MutexLock lock(mutex_);
  if (!ready_) return absl::UnavailableError("the configured layers are still loading");
  if (busy_) return absl::AbortedError("another admin call is in progress");
  busy_ = true;
  if (worker_.joinable()) worker_.join();  // it is not busy: it has told its caller, or is about to
  worker_ = std::thread([this, operation] {
    const absl::Status status = operation->Run();
    {
      MutexLock done(mutex_);  // before the caller is told, who may call again at once
      busy_ = false;
    }
    operation->End(status);
  });
  return absl::OkStatus();
}

grpc::ServerUnaryReactor* AdminService::LoadCheckpoint(grpc::CallbackServerContext* context,
                                                       const v1::LoadCheckpointRequest* request,
                                                       v1::LoadCheckpointResponse* response) {
  return Start(Rpc::kLoadCheckpoint, context, [=, this](const Stop& stop) { return Load(*request, stop, response); });
}

grpc::ServerUnaryReactor* AdminService::UnloadLayer(grpc::CallbackServerContext* context,
                                                    const v1::UnloadLayerRequest* request,
                                                    v1::UnloadLayerResponse* response) {
  return Start(Rpc::kUnloadLayer, context, [=, this](const Stop&) {
    const auto gone = loader_.Unload(
        request->model(), request->has_layer() ? std::optional<std::int64_t>(request->layer()) : std::nullopt);
    if (!gone.ok()) return gone.status();
    for (const LayerTable::Row& row : *gone) DescribeLayer(row, response->add_layers());
    return absl::OkStatus();
  });
}

absl::Status AdminService::Load(const v1::LoadCheckpointRequest& request, const Stop& stop,
                                v1::LoadCheckpointResponse* response) {
  if (absl::Status status = CheckModelName(request.model()); !status.ok()) return status;
  const absl::StatusOr<std::string> folder = ResolveBelow(model_root_, request.path());
  if (!folder.ok()) return folder.status();
  std::vector<std::int64_t> wanted(request.layers().begin(), request.layers().end());
  std::sort(wanted.begin(), wanted.end());
  if (const auto twice = std::adjacent_find(wanted.begin(), wanted.end()); twice != wanted.end()) {
    return absl::InvalidArgumentError(absl::StrCat("layers: ", *twice, " is named twice"));
  }
  const auto plan = PlanCheckpoint(*folder, {.model = request.model(), .family = request.family()}, wanted);
  if (!plan.ok()) return plan.status();
  const auto rows = loader_.LoadTogether(*plan, request.replace(), stop);
  if (!rows.ok()) return rows.status();
  for (const LayerTable::Row& row : *rows) DescribeLayer(row, response->add_layers());
  return absl::OkStatus();
}

}  // namespace expertd
