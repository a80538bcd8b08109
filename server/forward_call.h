// The unary Forward.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <memory>
#include <optional>

#include "server/call_registry.h"
#include "server/request_path.h"

namespace expertd {

// Lives from Start until gRPC is done with it and the request was answered, whichever is later.
class ForwardCall : public grpc::ServerUnaryReactor, public Call, public std::enable_shared_from_this<ForwardCall> {
 public:
  // What a raw unary handler returns. `path` and `calls` must outlive the call.
  static grpc::ServerUnaryReactor* Start(RequestPath& path, CallRegistry& calls, grpc::CallbackServerContext* context,
                                         const grpc::ByteBuffer* request, grpc::ByteBuffer* response);

  ForwardCall(RequestPath& path, CallRegistry& calls, grpc::CallbackServerContext* context, grpc::ByteBuffer* response)
      : Call(context), path_(path), calls_(calls), context_(context), response_(response) {}

  void Drain() override {}  // it is answered anyway

 private:
  void Run(const grpc::ByteBuffer& request);
  void Answer(const absl::Status& status, grpc::ByteBuffer message);

  void OnCancel() override;
  void OnDone() override;

  RequestPath& path_;
  CallRegistry& calls_;
  grpc::CallbackServerContext* const context_;  // until Finish
  grpc::ByteBuffer* const response_;            // until Finish

  Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Scheduler::JobId> job_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
