#include "server/request_stream.h"

#include <grpcpp/support/slice.h>

#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "server/grpc_status.h"
#include "server/status.h"

namespace expertd {
namespace {

// A stream that ends before it begins.
class RefusedStream : public RequestStream::Reactor {
 public:
  explicit RefusedStream(grpc::Status status) { Finish(std::move(status)); }
  void OnDone() override { delete this; }
};

}  // namespace

RequestStream::Reactor* RequestStream::Open(const std::shared_ptr<RequestStream>& stream,
                                            grpc::CallbackServerContext* context) {
  if (!stream->calls_.Add(stream)) return Refuse(stream->path_, stream->rpc_, context, DrainingError());
  stream->Advance();
  return stream.get();
}

RequestStream::Reactor* RequestStream::Refuse(RequestPath& path, Rpc rpc, grpc::CallbackServerContext* context,
                                              const absl::Status& refusal) {
  path.Refused(rpc, refusal);
  return new RefusedStream(ToGrpcStatus(refusal, context));
}

void RequestStream::EndWith(absl::Status status) {
  Stop(std::move(status));
  Advance();
}

void RequestStream::Stop(absl::Status status) {
  MutexLock lock(mutex_);
  StopReading(std::move(status));
}

void RequestStream::OnReadDone(bool ok) {
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

void RequestStream::Submit(std::uint64_t id, absl::StatusOr<ForwardHead> head, Slices payload, Clock::time_point time,
                           AnswerForm form, ErrorFn error) {
  bool unique;
  {
    MutexLock lock(mutex_);
    unique = in_flight_.try_emplace(id).second;
  }
  if (!unique) {
    const absl::Status status =
        head.ok() ? absl::InvalidArgumentError(absl::StrCat("request_id: ", id, " is in flight on this stream"))
                  : head.status();
    path_.Refused(rpc_, status);
    {
      MutexLock lock(mutex_);
      Keep(answers_.emplace_back(error(status)));
    }
    return Advance();
  }
  const Arrival arrival = {.rpc = rpc_, .tenant = caller_.tenant, .time = time, .form = std::move(form)};
  const std::optional<Scheduler::JobId> job = path_.Submit(
      std::move(head), payload, arrival,
      [self = shared_from_this(), id, error = std::move(error)](const absl::Status& status, grpc::ByteBuffer message) {
        self->Answered(id, status.ok() ? std::move(message) : error(status));
      });
  if (!job) return;
  bool cancel;
  {
    MutexLock lock(mutex_);
    if (const auto found = in_flight_.find(id); found != in_flight_.end()) found->second = job;
    cancel = broken_;
  }
  if (cancel) path_.Cancel(*job);
}

void RequestStream::CancelRequest(std::uint64_t id) {
  std::optional<Scheduler::JobId> job;
  {
    MutexLock lock(mutex_);
    if (const auto found = in_flight_.find(id); found != in_flight_.end()) job = found->second;
  }
  if (job) path_.Cancel(*job);
}

void RequestStream::Answered(std::uint64_t id, grpc::ByteBuffer message) {
  {
    MutexLock lock(mutex_);
    in_flight_.erase(id);
    if (!broken_) QueueAnswer(id, std::move(message));
  }
  Advance();
}

void RequestStream::QueueAnswer(std::uint64_t id, grpc::ByteBuffer message) {
  Keep(message);
  if (order_ == Order::kCompletion) return answers_.push_back(std::move(message));
  early_.emplace(id, std::move(message));
  for (auto first = early_.begin(); first != early_.end() && first->first == next_answer_; first = early_.begin()) {
    answers_.push_back(std::move(first->second));
    early_.erase(first);
    ++next_answer_;
  }
}

void RequestStream::OnWriteDone(bool ok) {
  path_.metrics().WriteDone(WriteEnds());
  outgoing_.Clear();
  {
    MutexLock lock(mutex_);
    writing_ = false;
    headers_sent_ = true;
    AddUnsent(-std::exchange(writing_bytes_, 0));
  }
  if (ok) {
    Advance();
  } else {
    OnCancel();
  }
}

void RequestStream::OnCancel() {
  std::vector<Scheduler::JobId> jobs;
  {
    MutexLock lock(mutex_);
    broken_ = true;
    answers_.clear();
    early_.clear();
    AddUnsent(writing_bytes_ - unsent_bytes());
    for (const auto& [id, job] : in_flight_) {
      if (job) jobs.push_back(*job);
    }
  }
  for (const Scheduler::JobId job : jobs) path_.Cancel(job);
  Advance();
}

void RequestStream::OnDone() {
  ForgetContext();
  calls_.Remove(this);
}

void RequestStream::StopReading(absl::Status status) {
  if (!end_) end_ = std::move(status);
}

void RequestStream::Advance() {
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

RequestStream::Actions RequestStream::Next() {
  Actions actions;
  if (finished_) return actions;
  if (!writing_ && !broken_ && !answers_.empty()) {
    outgoing_.Swap(&answers_.front());
    writing_bytes_ = static_cast<std::int64_t>(outgoing_.Length());
    answers_.pop_front();
    writing_ = actions.write = true;
    // Not with the first: it sends the headers too, and a write of headers that is held back never comes to an end.
    actions.more = headers_sent_ && !answers_.empty();
  }
  // Answers count too: who does not read them is not read from.
  const auto held = static_cast<std::int64_t>(in_flight_.size() + early_.size() + answers_.size()) + (writing_ ? 1 : 0);
  const bool room = held < max_in_flight_ && unsent_bytes() <= calls_.output().call_bytes / 2;
  if (!reading_ && !end_ && !broken_ && room) reading_ = actions.read = true;
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
