#include "client/cpp/stream.h"

#include <grpcpp/alarm.h>
#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/client_callback.h>

#include <algorithm>
#include <deque>
#include <unordered_map>
#include <utility>

#include "kernels/base/mutex.h"

namespace expertd::client {
namespace {
constexpr char kStreamMethod[] = "/expertd.v1.Expertd/ForwardStream";
// The stream whose callback this thread is in.
thread_local const void* calling_back = nullptr;
}  // namespace

// One read is always outstanding until the call is over, so OnDone cannot come while reading_ is true: that makes it
// safe to start writes from any thread under the lock.
class Stream::Reactor final : public grpc::ClientBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer> {
 public:
  Reactor(std::shared_ptr<grpc::Channel> channel, StreamOptions options)
      : channel_(std::move(channel)),
        options_(std::move(options)),
        unauthorized_(Authorize(options_.token, context_)),
        retries_(options_.retries != nullptr && options_.retries->enabled() ? options_.retries.get() : nullptr) {
    grpc::GenericStub(channel_).PrepareBidiStreamingCall(&context_, kStreamMethod, {}, this);
    if (!unauthorized_.ok()) context_.TryCancel();
    StartRead(&incoming_);
    StartCall();
  }

  absl::StatusOr<std::uint64_t> Forward(Request request, Done done) {
    if (absl::Status status = CheckRows(request, options_.max_rows); !status.ok()) return status;
    MutexLock lock(mutex_);
    if (calling_back != this) {
      while (pending_.size() >= static_cast<std::size_t>(options_.max_in_flight) && reading_ && !closing_) {
        changed_.Wait(mutex_);
      }
    }
    if (!reading_) {
      while (!ended_) changed_.Wait(mutex_);  // its status is on its way
      return status_.ok() ? absl::UnavailableError("the server has ended the stream") : status_;
    }
    if (closing_) return absl::FailedPreconditionError("the stream is closed");
    const std::uint64_t id = next_id_++;
    request.head.set_request_id(id);
    Pending& pending = pending_[id];
    pending.done = std::move(done);
    Write(EncodeStreamForward(request));
    if (retries_ == nullptr) return id;
    if (request.head.timeout_us() > 0) {
      pending.deadline = RetryClock::now() + std::chrono::microseconds(request.head.timeout_us());
    }
    pending.request = std::move(request);
    return id;
  }

  void Cancel(std::uint64_t id) {
    Done done;
    {
      MutexLock lock(mutex_);
      const auto found = pending_.find(id);
      if (!reading_ || found == pending_.end()) return;
      if (!found->second.paused) {
        if (!writes_done_) Write(EncodeStreamCancel(id));
        return;
      }
      done = Take(found);  // the server does not know it
    }
    Call(done, absl::CancelledError("cancelled before it was sent again"));
  }

  absl::Status Close() {
    MutexLock lock(mutex_);
    closing_ = true;
    changed_.NotifyAll();
    FinishWriting();
    while (!done_) changed_.Wait(mutex_);
    return status_;
  }

  void Abort() { context_.TryCancel(); }

  bool ended() const {
    MutexLock lock(mutex_);
    return !reading_;
  }

 private:
  struct Pending {
    Done done;
    Request request;  // only when it may be sent again
    RetryClock::time_point deadline = RetryClock::time_point::max();
    int attempt = 1;
    bool paused = false;  // refused, and to be sent again
    grpc::Alarm pause;
  };
  using PendingMap = std::unordered_map<std::uint64_t, Pending>;

  void Write(grpc::ByteBuffer message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    outgoing_.push_back(std::move(message));
    if (!writing_) {
      writing_ = true;
      StartWrite(&outgoing_.front());
    }
  }

  // Closed, and nothing can be sent again any more: tells the server.
  void FinishWriting() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const bool may_send = retries_ != nullptr && !pending_.empty();
    if (!closing_ || !reading_ || writing_ || writes_done_ || may_send) return;
    writes_done_ = true;
    StartWritesDone();
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    outgoing_.pop_front();
    writing_ = ok && reading_ && !outgoing_.empty();
    if (writing_) {
      StartWrite(&outgoing_.front());
    } else if (!ok || !reading_) {
      outgoing_.clear();  // the call is over: OnDone tells everybody
    } else {
      FinishWriting();
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      MutexLock lock(mutex_);
      reading_ = false;
      changed_.NotifyAll();
      return;
    }
    absl::StatusOr<Answer> answer = DecodeAnswer(incoming_);
    if (!answer.ok()) {
      context_.TryCancel();  // nobody can tell whose answer it was
    } else {
      Complete(*std::move(answer));
    }
    incoming_.Clear();
    StartRead(&incoming_);
  }

  void Complete(Answer answer) ABSL_LOCKS_EXCLUDED(mutex_) {
    const absl::Status error = ErrorOf(answer.response);
    Done done;
    {
      MutexLock lock(mutex_);
      const auto found = pending_.find(answer.response.request_id());
      if (found == pending_.end()) return;
      if (retries_ != nullptr && error.ok()) retries_->Succeeded();
      if (!error.ok() && Pause(found->first, found->second, error)) return;
      done = Take(found);
    }
    if (error.ok()) {
      Call(done, std::move(answer));
    } else {
      Call(done, error);
    }
  }

  // Whether the refused request will be sent again.
  bool Pause(std::uint64_t id, Pending& pending, const absl::Status& error) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (retries_ == nullptr || writes_done_) return false;
    const auto now = RetryClock::now();
    const auto wait = retries_->WaitAfter(pending.attempt, error, now, pending.deadline);
    if (!wait.has_value()) return false;
    pending.paused = true;
    ++pauses_;
    pending.pause.Set(std::chrono::system_clock::now() + *wait, [this, id](bool) { SendAgain(id); });
    return true;
  }

  void SendAgain(std::uint64_t id) ABSL_LOCKS_EXCLUDED(mutex_) {
    MutexLock lock(mutex_);
    --pauses_;
    const auto found = pending_.find(id);
    if (reading_ && found != pending_.end()) {
      Pending& pending = found->second;
      pending.paused = false;
      ++pending.attempt;
      if (pending.deadline != RetryClock::time_point::max()) {
        const auto left = std::chrono::duration_cast<std::chrono::microseconds>(pending.deadline - RetryClock::now());
        pending.request.head.set_timeout_us(static_cast<std::uint64_t>(std::max<std::int64_t>(1, left.count())));
      }
      Write(EncodeStreamForward(pending.request));
    }
    FinishWriting();
    FinishWhenOver();
  }

  Done Take(PendingMap::iterator found) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Done done = std::move(found->second.done);
    pending_.erase(found);
    FinishWriting();
    return done;
  }

  void Call(const Done& done, absl::StatusOr<Answer> answer) ABSL_LOCKS_EXCLUDED(mutex_) {
    const void* const outer = std::exchange(calling_back, this);
    done(std::move(answer));
    calling_back = outer;
    MutexLock lock(mutex_);
    changed_.NotifyAll();  // there is room for another
  }

  void OnDone(const grpc::Status& status) override {
    PendingMap orphans;
    absl::Status reason = unauthorized_.ok() ? FromGrpc(status) : unauthorized_;
    {
      MutexLock lock(mutex_);
      reading_ = false;
      orphans.swap(pending_);
      status_ = reason;
      ended_ = true;
      changed_.NotifyAll();
    }
    if (reason.ok()) reason = absl::InternalError("the stream ended without an answer to this request");
    for (auto& [id, pending] : orphans) {
      pending.pause.Cancel();
      Call(pending.done, reason);
    }
    MutexLock lock(mutex_);
    told_ = true;
    FinishWhenOver();
  }

  // Everybody was told, and no pause will call us any more.
  void FinishWhenOver() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (!told_ || pauses_ > 0) return;
    done_ = true;
    changed_.NotifyAll();  // under the lock: the waiter may destroy this
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const StreamOptions options_;
  grpc::ClientContext context_;
  const absl::Status unauthorized_;
  RetryBudget* const retries_;  // null: nothing is sent again
  grpc::ByteBuffer incoming_;   // only the read in progress touches it

  mutable Mutex mutex_;
  CondVar changed_;
  std::uint64_t next_id_ ABSL_GUARDED_BY(mutex_) = 1;
  PendingMap pending_ ABSL_GUARDED_BY(mutex_);
  std::deque<grpc::ByteBuffer> outgoing_ ABSL_GUARDED_BY(mutex_);  // front: being written while writing_
  int pauses_ ABSL_GUARDED_BY(mutex_) = 0;                         // alarms that have yet to call
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool writes_done_ ABSL_GUARDED_BY(mutex_) = false;
  bool reading_ ABSL_GUARDED_BY(mutex_) = true;   // false: nothing more will come
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;  // Close was called
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;    // status_ is known
  bool told_ ABSL_GUARDED_BY(mutex_) = false;     // ... and every callback has returned
  bool done_ ABSL_GUARDED_BY(mutex_) = false;     // ... and no alarm is left
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

Stream::Stream(const std::shared_ptr<grpc::Channel>& channel, StreamOptions options)
    : reactor_(std::make_unique<Reactor>(channel, std::move(options))) {}
Stream::~Stream() {
  reactor_->Abort();
  (void)reactor_->Close();
}
absl::StatusOr<std::uint64_t> Stream::Forward(Request request, Done done) {
  return reactor_->Forward(std::move(request), std::move(done));
}
void Stream::Cancel(std::uint64_t id) { reactor_->Cancel(id); }
absl::Status Stream::Close() { return reactor_->Close(); }
void Stream::Abort() { reactor_->Abort(); }
bool Stream::ended() const { return reactor_->ended(); }

}  // namespace expertd::client
