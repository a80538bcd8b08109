// The open inference protocol (KServe v2) beside our own service: an adapter. Its requests become ForwardHeads for the
// same request path, its calls are the same calls, its errors the same statuses. What it says of tensors:
// infer_request.h.
#pragma once

#include <inference/grpc_service.grpc.pb.h>

#include <cstdint>
#include <functional>

#include "server/access/access.h"
#include "server/call_registry.h"
#include "server/forward_call.h"
#include "server/health.h"
#include "server/kserve/infer_request.h"
#include "server/kserve/shared_memory.h"
#include "server/layer_table.h"
#include "server/request_path.h"

namespace expertd::kserve {

using S = inference::GRPCInferenceService;
// clang-format off
using RawInferenceService =
    S::WithRawCallbackMethod_ModelInfer<S::WithRawCallbackMethod_ModelStreamInfer<
    S::WithCallbackMethod_ServerLive<S::WithCallbackMethod_ServerReady<S::WithCallbackMethod_ModelReady<
    S::WithCallbackMethod_ServerMetadata<S::WithCallbackMethod_ModelMetadata<S::WithCallbackMethod_ModelConfig<
    S::WithCallbackMethod_ModelStatistics<S::WithCallbackMethod_RepositoryIndex<
    S::WithCallbackMethod_SystemSharedMemoryStatus<S::WithCallbackMethod_SystemSharedMemoryRegister<
    S::WithCallbackMethod_SystemSharedMemoryUnregister<S::Service>>>>>>>>>>>>>;
// clang-format on

struct InferenceLimits {
  std::int64_t max_rows = 0;           // of one request
  std::int64_t max_message_bytes = 0;  // of one request; also of its tensors in shared memory
  std::int64_t max_in_flight_per_stream = 0;
  bool shared_memory = false;  // whether callers may bring theirs
};

// Everything referred to must outlive the gRPC server that this is registered with.
class InferenceService final : public RawInferenceService {
 public:
  InferenceService(const Access& access, RequestPath& path, CallRegistry& calls, const LayerTable& layers,
                   const Health& health, const InferenceLimits& limits)
      : access_(access), path_(path), calls_(calls), layers_(layers), health_(health), limits_(limits) {}

  using Context = grpc::CallbackServerContext;
  using Unary = grpc::ServerUnaryReactor;

  Unary* ModelInfer(Context* context, const grpc::ByteBuffer* request, grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ModelStreamInfer(Context* context) override;

  Unary* ServerLive(Context* context, const inference::ServerLiveRequest* request,
                    inference::ServerLiveResponse* response) override;
  Unary* ServerReady(Context* context, const inference::ServerReadyRequest* request,
                     inference::ServerReadyResponse* response) override;
  Unary* ModelReady(Context* context, const inference::ModelReadyRequest* request,
                    inference::ModelReadyResponse* response) override;
  Unary* ServerMetadata(Context* context, const inference::ServerMetadataRequest* request,
                        inference::ServerMetadataResponse* response) override;
  Unary* ModelMetadata(Context* context, const inference::ModelMetadataRequest* request,
                       inference::ModelMetadataResponse* response) override;
  Unary* ModelConfig(Context* context, const inference::ModelConfigRequest* request,
                     inference::ModelConfigResponse* response) override;
  Unary* ModelStatistics(Context* context, const inference::ModelStatisticsRequest* request,
                         inference::ModelStatisticsResponse* response) override;
  Unary* RepositoryIndex(Context* context, const inference::RepositoryIndexRequest* request,
                         inference::RepositoryIndexResponse* response) override;
  Unary* SystemSharedMemoryStatus(Context* context, const inference::SystemSharedMemoryStatusRequest* request,
                                  inference::SystemSharedMemoryStatusResponse* response) override;
  Unary* SystemSharedMemoryRegister(Context* context, const inference::SystemSharedMemoryRegisterRequest* request,
                                    inference::SystemSharedMemoryRegisterResponse* response) override;
  Unary* SystemSharedMemoryUnregister(Context* context, const inference::SystemSharedMemoryUnregisterRequest* request,
                                      inference::SystemSharedMemoryUnregisterResponse* response) override;

 private:
  // Runs `answer` for a caller with the infer role, and finishes with what it returns.
  Unary* Query(Context* context, const std::function<absl::Status(const Caller& caller)>& answer);
  // The same for calls of the shared memory extension.
  Unary* MemoryQuery(Context* context, const std::function<absl::Status(const Caller& caller)>& answer);
  // NotFound. Loading layers are found.
  absl::StatusOr<LayerTable::Row> FindRow(absl::string_view name, absl::string_view version) const;
  // What a call may refer to: nothing unless the flag is on and its peer is on this machine.
  SharedMemoryOf SharedBy(absl::string_view tenant, const Context& context) const;

  const Access& access_;
  RequestPath& path_;
  CallRegistry& calls_;
  const LayerTable& layers_;
  const Health& health_;
  const InferenceLimits limits_;
  SharedMemory memory_;
};

}  // namespace expertd::kserve
