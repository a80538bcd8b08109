#include "server/service.h"

#include <chrono>
#include <utility>

#include "server/forward_call.h"
#include "server/forward_stream.h"
#include "server/layer_message.h"
#include "server/session_stream.h"

namespace expertd {
grpc::ServerUnaryReactor* ExpertdService::Forward(grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                                  grpc::ByteBuffer* response) {
  absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kInfer);
  if (!caller.ok()) return ForwardCall::Refuse(path_, Rpc::kForward, context, caller.status());
  const ForwardCall::SubmitFn submit = [this](Slices message, const Arrival& arrival, AnswerFn answer) {
    return path_.Submit(ScanForwardRequest(message), message, arrival, std::move(answer));
  };
  return ForwardCall::Start({path_, calls_, *std::move(caller), Rpc::kForward, context}, submit, request, response);
}

grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>* ExpertdService::ForwardStream(
    grpc::CallbackServerContext* context) {
  absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kInfer);
  if (!caller.ok()) return RequestStream::Refuse(path_, Rpc::kForwardStream, context, caller.status());
  auto stream = std::make_shared<expertd::ForwardStream>(
      RequestStream::Setup{path_, calls_, *std::move(caller), context, info_.max_in_flight_per_stream()});
  return RequestStream::Open(stream, context);
}

grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>* ExpertdService::Session(
    grpc::CallbackServerContext* context) {
  absl::StatusOr<Caller> caller = access_.Admit(*context, Role::kInfer);
  if (caller.ok() && lane_ == nullptr) {
    caller = absl::UnimplementedError("Session: this server has no fast lane (--fast-lane-socket)");
  }
  if (!caller.ok()) return SessionStream::Refuse(path_, context, caller.status());
  return SessionStream::Open({*lane_, path_, calls_, *std::move(caller), context});
}

grpc::ServerUnaryReactor* ExpertdService::ListLayers(grpc::CallbackServerContext* context, const v1::ListLayersRequest*,
                                                     v1::ListLayersResponse* response) {
  if (const auto caller = access_.Admit(*context, Role::kInfer); !caller.ok()) {
    return ForwardCall::Refuse(path_, Rpc::kListLayers, context, caller.status());
  }
  const Clock::time_point start = Clock::now();
  for (const LayerTable::Row& row : layers_.List()) DescribeLayer(row, response->add_layers());
  path_.metrics().RequestDone(Rpc::kListLayers, absl::StatusCode::kOk,
                              std::chrono::duration<double>(Clock::now() - start).count());
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

grpc::ServerUnaryReactor* ExpertdService::GetServerInfo(grpc::CallbackServerContext* context,
                                                        const v1::GetServerInfoRequest*,
                                                        v1::GetServerInfoResponse* response) {
  if (const auto caller = access_.Admit(*context, Role::kInfer); !caller.ok()) {
    return ForwardCall::Refuse(path_, Rpc::kGetServerInfo, context, caller.status());
  }
  *response = info_;
  path_.metrics().RequestDone(Rpc::kGetServerInfo, absl::StatusCode::kOk, 0);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(grpc::Status::OK);
  return reactor;
}

}  // namespace expertd
