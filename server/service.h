// The gRPC service: raw byte-buffer methods for the two Forward RPCs, plain messages for the rest.
#pragma once

#include <expertd/v1/expertd.grpc.pb.h>

#include <memory>
#include <string>

#include "server/access/access.h"
#include "server/call_registry.h"
#include "server/lane/fast_lane.h"
#include "server/layer_table.h"
#include "server/request_path.h"

namespace expertd {

using RawService = v1::Expertd::WithRawCallbackMethod_Forward<v1::Expertd::WithRawCallbackMethod_ForwardStream<
    v1::Expertd::WithCallbackMethod_Session<v1::Expertd::WithCallbackMethod_ListLayers<
        v1::Expertd::WithCallbackMethod_GetServerInfo<v1::Expertd::Service>>>>>;

// Everything referred to must outlive the gRPC server that this is registered with.
class ExpertdService final : public RawService {
 public:
  // `info` is what GetServerInfo answers. `lane` holds nothing where there is no fast lane, and is set before the first
  // call comes.
  ExpertdService(const Access& access, RequestPath& path, CallRegistry& calls, const LayerTable& layers,
                 const std::unique_ptr<FastLane>& lane, v1::GetServerInfoResponse info)
      : access_(access), path_(path), calls_(calls), layers_(layers), lane_(lane), info_(std::move(info)) {}

  grpc::ServerUnaryReactor* Forward(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                    grpc::ByteBuffer* response) override;
  grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ForwardStream(
      grpc::CallbackServerContext* context) override;
  grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* Session(
      grpc::CallbackServerContext* context) override;
  grpc::ServerUnaryReactor* ListLayers(grpc::CallbackServerContext* context, const v1::ListLayersRequest* request,
                                       v1::ListLayersResponse* response) override;
  grpc::ServerUnaryReactor* GetServerInfo(grpc::CallbackServerContext* context, const v1::GetServerInfoRequest* request,
                                          v1::GetServerInfoResponse* response) override;

 private:
  const Access& access_;
  RequestPath& path_;
  CallRegistry& calls_;
  const LayerTable& layers_;
  const std::unique_ptr<FastLane>& lane_;
  const v1::GetServerInfoResponse info_;
};

}  // namespace expertd
