#include "server/forward_call.h"

#include <utility>

#include "server/grpc_status.h"

namespace expertd {
namespace {

Clock::time_point SteadyDeadline(std::chrono::system_clock::time_point deadline, Clock::time_point now) {
  // gRPC gives calls without a deadline the largest time point there is.
  const auto left = deadline - std::chrono::system_clock::now();
  if (left > std::chrono::hours(24 * 365)) return Clock::time_point::max();
  return now + std::chrono::duration_cast<Clock::duration>(left);
}

// As OpenTelemetry's gRPC instrumentation sends it; empty: not given.
absl::string_view Traceparent(const grpc::ServerContextBase& context) {
  const auto found = context.client_metadata().find("traceparent");
  if (found == context.client_metadata().end()) return {};
  return {found->second.data(), found->second.size()};
}

}  // namespace

grpc::ServerUnaryReactor* ForwardCall::Start(Setup setup, const SubmitFn& submit, const grpc::ByteBuffer* request,
                                             grpc::ByteBuffer* response) {
  auto call = std::make_shared<ForwardCall>(setup, response);
  if (!setup.calls.Add(call)) return Refuse(setup.path, setup.rpc, setup.context, DrainingError());
  call->Run(submit, *request);
  return call.get();
}

grpc::ServerUnaryReactor* ForwardCall::Refuse(RequestPath& path, Rpc rpc, grpc::CallbackServerContext* context,
                                              const absl::Status& refusal) {
  path.Refused(rpc, refusal);
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpcStatus(refusal, context));
  return reactor;
}

void ForwardCall::Run(const SubmitFn& submit, const grpc::ByteBuffer& request) {
  Arrival arrival = {.rpc = rpc_, .tenant = caller_.tenant, .time = Clock::now()};
  arrival.call_deadline = SteadyDeadline(context_->deadline(), arrival.time);
  arrival.traceparent = Traceparent(*context_);
  const MessageSlices slices(request);
  const std::optional<Scheduler::JobId> job =
      submit(slices, arrival, [self = shared_from_this()](const absl::Status& status, grpc::ByteBuffer message) {
        self->Answer(status, std::move(message));
      });
  // The rows were copied. gRPC owns the message and drops it only with the call, which would hold all rows twice.
  const_cast<grpc::ByteBuffer&>(request).Clear();
  if (!job) return;
  bool cancelled;
  {
    MutexLock lock(mutex_);
    job_ = job;
    cancelled = cancelled_;
  }
  if (cancelled) path_.Cancel(*job);
}

void ForwardCall::Answer(const absl::Status& status, grpc::ByteBuffer message) {
  if (status.ok()) {
    AddUnsent(static_cast<std::int64_t>(message.Length()));
    response_->Swap(&message);
  }
  WriteStarts();
  Finish(ToGrpcStatus(status, context_));
}

void ForwardCall::OnCancel() {
  std::optional<Scheduler::JobId> job;
  {
    MutexLock lock(mutex_);
    cancelled_ = true;
    job = job_;
  }
  if (job) path_.Cancel(*job);
}

void ForwardCall::OnDone() {
  ForgetContext();
  path_.metrics().WriteDone(WriteEnds());
  calls_.Remove(this);
}

}  // namespace expertd
