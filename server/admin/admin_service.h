// expertd.v1.Admin over gRPC.
#pragma once

#include <expertd/v1/admin.grpc.pb.h>

#include <functional>
#include <memory>
#include <string>
#include <thread>

#include "kernels/base/mutex.h"
#include "server/access/access.h"
#include "server/admin/layer_loader.h"
#include "server/call_registry.h"
#include "server/metrics.h"

namespace expertd {

// One operation at a time, on a thread of its own, so that no event thread reads weights.
class AdminService final : public v1::Admin::CallbackService {
 public:
  // Everything referred to must outlive the gRPC server that this is registered with. Calls are refused until
  // SetReady.
  AdminService(const Access& access, CallRegistry& calls, LayerLoader& loader, Metrics& metrics, std::string model_root)
      : access_(access), calls_(calls), loader_(loader), metrics_(metrics), model_root_(std::move(model_root)) {}
  // After the gRPC server.
  ~AdminService() override;

  // The configured layers are loaded.
  void SetReady();

  grpc::ServerUnaryReactor* LoadCheckpoint(grpc::CallbackServerContext* context,
                                           const v1::LoadCheckpointRequest* request,
                                           v1::LoadCheckpointResponse* response) override;
  grpc::ServerUnaryReactor* UnloadLayer(grpc::CallbackServerContext* context, const v1::UnloadLayerRequest* request,
                                        v1::UnloadLayerResponse* response) override;

 private:
  class Operation;
  // Asked between steps: whether the caller has gone, or the server drains.
  using Stop = std::function<bool()>;

  grpc::ServerUnaryReactor* Start(Rpc rpc, grpc::CallbackServerContext* context,
                                  std::function<absl::Status(const Stop&)> work);
  absl::Status Begin(const std::shared_ptr<Operation>& operation);
  absl::Status Load(const v1::LoadCheckpointRequest& request, const Stop& stop, v1::LoadCheckpointResponse* response);

  const Access& access_;
  CallRegistry& calls_;
  LayerLoader& loader_;
  Metrics& metrics_;
  const std::string model_root_;

  Mutex mutex_;
  bool ready_ ABSL_GUARDED_BY(mutex_) = false;
  bool busy_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread worker_ ABSL_GUARDED_BY(mutex_);  // of the last operation
};

}  // namespace expertd
