// A unary call that runs rows, whatever protocol its messages are written in.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <functional>
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
  // Reads the message and submits it, as RequestPath::Submit.
  using SubmitFn =
      std::function<std::optional<Scheduler::JobId>(Slices message, const Arrival& arrival, AnswerFn answer)>;

  struct Setup {
    RequestPath& path;
    CallRegistry& calls;  // both must outlive the call
    Caller caller;        // admitted
    Rpc rpc;
    grpc::CallbackServerContext* context;
  };

  // What a raw unary handler returns.
  static grpc::ServerUnaryReactor* Start(Setup setup, const SubmitFn& submit, const grpc::ByteBuffer* request,
                                         grpc::ByteBuffer* response);

  // What a handler returns for a call that is refused.
  static grpc::ServerUnaryReactor* Refuse(RequestPath& path, Rpc rpc, grpc::CallbackServerContext* context,
                                          const absl::Status& refusal);

  ForwardCall(Setup setup, grpc::ByteBuffer* response)
      : Call(setup.context),
        path_(setup.path),
        calls_(setup.calls),
        caller_(std::move(setup.caller)),
        rpc_(setup.rpc),
        context_(setup.context),
        response_(response) {}

  void Drain() override {}  // it is answered anyway

 private:
  void Run(const SubmitFn& submit, const grpc::ByteBuffer& request);
  void Answer(const absl::Status& status, grpc::ByteBuffer message);

  void OnCancel() override;
  void OnDone() override;

  RequestPath& path_;
  CallRegistry& calls_;
  const Caller caller_;
  const Rpc rpc_;
  grpc::CallbackServerContext* const context_;  // until Finish
  grpc::ByteBuffer* const response_;            // until Finish

  Mutex mutex_;
  bool cancelled_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Scheduler::JobId> job_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
