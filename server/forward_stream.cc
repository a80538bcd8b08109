#include "server/forward_stream.h"

#include <grpcpp/support/slice.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"
#include "server/status.h"

namespace expertd {
namespace {

// A stream that ends before it begins.
class RefusedStream : public ForwardStream::Reactor {
 public:
  explicit RefusedStream(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

grpc::ByteBuffer ErrorMessage(std::uint64_t request_id, const absl::Status& status) {
  const std::optional<std::chrono::microseconds> after = RetryAfter(status);
  const grpc::Slice slice(
      EncodeErrorResponse(request_id, status, after ? static_cast<std::uint64_t>(after->count()) : 0));
  return grpc::ByteBuffer(&slice, 1);
}

}  // namespace

ForwardStream::Reactor* ForwardStream::Start(RequestPath& path, CallRegistry& calls, Caller caller,
                                             grpc::CallbackServerContext* context, std::int64_t max_in_flight) {
  auto stream = std::make_shared<ForwardStream>(path, calls, std::move(caller), context, max_in_flight);
  if (!calls.Add(stream)) return Refuse(path, context, DrainingError());
  stream->Advance();
  return stream.get();
}

ForwardStream::Reactor* ForwardStream::Refuse(RequestPath& path, grpc::CallbackServerContext* context,
                                              const absl::Status& refusal) {
  path.Refused(Rpc::kForwardStream, refusal);
  return new RefusedStream(ToGrpcStatus(refusal, context));
}

void ForwardStream::Drain() {
  {
    MutexLock lock(mutex_);
    StopReading(DrainingError());
  }
  Advance();
}

void ForwardStream::OnReadDone(bool ok) {
  bool wanted;
  {
    MutexLock lock(mutex_);
    if (!ok) StopReading(absl::OkStatus());  // the caller has half-closed
    wanted = handling_ = ok && !end_;        // what arrives after a drain began is not accepted
  }
  if (wanted) Handle(incoming_);
  incoming_.Clear();
  {
    MutexLock lock(mutex_);
    reading_ = handling_ = false;
  }
  Advance();
}

void ForwardStream::Handle(const grpc::ByteBuffer& message) {
  const Clock::time_point time = Clock::now();
  const MessageSlices slices(message);
  std::uint64_t request_id = 0;
  bool decodable = true;
  absl::StatusOr<StreamHead> head = ScanStreamRequest(slices, &request_id, &decodable);
  if (!decodable) {
    MutexLock lock(mutex_);
    StopReading(head.status());
  } else if (!head.ok()) {
    Submit(head.status(), slices, request_id, time);
  } else if (head->cancel_request_id) {
    CancelRequest(*head->cancel_request_id);
  } else {
    Submit(std::move(head->forward), slices, request_id, time);
  }
}

void ForwardStream::Submit(absl::StatusOr<ForwardHead> head, Slices slices, std::uint64_t request_id,
                           Clock::time_point time) {
  bool unique;
  {
    MutexLock lock(mutex_);
    unique = in_flight_.try_emplace(request_id).second;
  }
  if (!unique) {
    const absl::Status status =
        head.ok() ? absl::InvalidArgumentError(absl::StrCat("request_id: ", request_id, " is in flight on this stream"))
                  : head.status();
    path_.Refused(Rpc::kForwardStream, status);
    AnswerRefused(request_id, status);
    return;
  }
  const Arrival arrival = {.rpc = Rpc::kForwardStream, .tenant = caller_.tenant, .time = time};
  const std::optional<Scheduler::JobId> job =
      path_.Submit(std::move(head), slices, arrival,
                   [self = shared_from_this(), request_id](const absl::Status& status, grpc::ByteBuffer message) {
                     self->Answered(request_id, status, std::move(message));
                   });
  if (!job) return;
  bool cancel;
  {
    MutexLock lock(mutex_);
    if (const auto found = in_flight_.find(request_id); found != in_flight_.end()) found->second = job;
    cancel = broken_;
  }
  if (cancel) path_.Cancel(*job);
}

void ForwardStream::CancelRequest(std::uint64_t request_id) {
  std::optional<Scheduler::JobId> job;
  {
    MutexLock lock(mutex_);
    if (const auto found = in_flight_.find(request_id); found != in_flight_.end()) job = found->second;
  }
  if (job) path_.Cancel(*job);
}

void ForwardStream::Answered(std::uint64_t request_id, const absl::Status& status, grpc::ByteBuffer message) {
  if (!status.ok()) message = ErrorMessage(request_id, status);
  {
    MutexLock lock(mutex_);
    in_flight_.erase(request_id);
    if (!broken_) answers_.push_back(std::move(message));
  }
  Advance();
}

void ForwardStream::AnswerRefused(std::uint64_t request_id, const absl::Status& status) {
  {
    MutexLock lock(mutex_);
    answers_.push_back(ErrorMessage(request_id, status));
  }
  Advance();
}

void ForwardStream::OnWriteDone(bool ok) {
  path_.metrics().WriteDone(WriteEnds());
  outgoing_.Clear();
  {
    MutexLock lock(mutex_);
    writing_ = false;
  }
  if (ok) {
    Advance();
  } else {
    OnCancel();
  }
}

void ForwardStream::OnCancel() {
  std::vector<Scheduler::JobId> jobs;
  {
    MutexLock lock(mutex_);
    broken_ = true;
    answers_.clear();
    for (const auto& [id, job] : in_flight_) {
      if (job) jobs.push_back(*job);
    }
  }
  for (const Scheduler::JobId job : jobs) path_.Cancel(job);
  Advance();
}

void ForwardStream::OnDone() {
  ForgetContext();
  calls_.Remove(this);
}

void ForwardStream::StopReading(absl::Status status) {
  if (!end_) end_ = std::move(status);
}

void ForwardStream::Advance() {
  for (;;) {
    Actions actions;
    {
      MutexLock lock(mutex_);
      actions = Next();
      if (!actions.read && !actions.write && !actions.finish) return;
      ++acting_;
    }
    if (actions.read) StartRead(&incoming_);
    if (actions.write) {
      WriteStarts();
      // What follows at once goes to the socket together with it.
      StartWrite(&outgoing_, actions.more ? grpc::WriteOptions().set_buffer_hint() : grpc::WriteOptions());
    }
    if (actions.finish) {
      Finish(ToGrpcStatus(*actions.finish, nullptr));
      return;  // gRPC may be done with this already; `finished_` keeps everybody else away
    }
    MutexLock lock(mutex_);
    --acting_;
  }
}

ForwardStream::Actions ForwardStream::Next() {
  Actions actions;
  if (finished_) return actions;
  if (!writing_ && !broken_ && !answers_.empty()) {
    outgoing_.Swap(&answers_.front());
    answers_.pop_front();
    writing_ = actions.write = true;
    actions.more = !answers_.empty();
  }
  // Answers count too: who does not read them is not read from.
  const auto held = static_cast<std::int64_t>(in_flight_.size() + answers_.size()) + (writing_ ? 1 : 0);
  if (!reading_ && !end_ && !broken_ && held < max_in_flight_) reading_ = actions.read = true;
  if (actions.read || actions.write || writing_ || acting_ > 0) return actions;
  if (broken_) {
    finished_ = true;
    actions.finish = absl::CancelledError("cancelled by the caller");
  } else if (end_ && !handling_ && in_flight_.empty() && answers_.empty()) {
    finished_ = true;
    actions.finish = *end_;
  }
  return actions;
}

}  // namespace expertd
