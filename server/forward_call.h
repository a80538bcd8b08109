// The unary Forward.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>
#include <utility>

#include "server/call_registry.h"
#include "server/caller.h"
#include "server/request_path.h"

namespace expertd {

// Lives from Start until gRPC is done with it and the request was answered, whichever is later.
class ForwardCall : public grpc::ServerUnaryReactor, public Call, public std::enable_shared_from_this<ForwardCall> {
 public:
  // What a raw unary handler returns for an admitted caller. `path` and `calls` must outlive the call.
  static grpc::ServerUnaryReactor* Start(RequestPath& path, CallRegistry& calls, Caller caller,
                                         grpc::CallbackServerContext* context, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response);

  // What a handler returns for a call that is refused.
  static grpc::ServerUnaryReactor* Refuse(RequestPath& path, Rpc rpc, grpc::CallbackServerContext* context,
                                          const absl::Status& refusal);

  ForwardCall(RequestPath& path, CallRegistry& calls, Caller caller, grpc::CallbackServerContext* context,
              grpc::ByteBuffer* response)
      : Call(context), path_(path), calls_(calls), caller_(std::move(caller)), context_(context), response_(response) {}

  void Drain() override {}  // it is answered anyway

 private:
  void Run(const grpc::ByteBuffer& request);
  void Answer(const absl::Status& status, grpc::ByteBuffer message);

  void OnCancel() override;
  void OnDone() override;

  RequestPath& path_;
  CallRegistry& calls_;
  const Caller caller_;
  grpc::CallbackServerContext* const context_;  // until Finish
  grpc::ByteBuffer* const response_;            // until Finish

  Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Scheduler::JobId> job_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
