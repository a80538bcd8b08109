#include "client/cpp/stream.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/client_callback.h>

#include <condition_variable>
#include <deque>
#include <mutex>
#include <unordered_map>
#include <utility>

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
  Reactor(std::shared_ptr<grpc::Channel> channel, int max_in_flight)
      : channel_(std::move(channel)), max_in_flight_(static_cast<std::size_t>(max_in_flight)) {
    grpc::GenericStub(channel_).PrepareBidiStreamingCall(&context_, kStreamMethod, {}, this);
    StartRead(&incoming_);
    StartCall();
  }

  absl::StatusOr<std::uint64_t> Forward(Request request, Done done) {
    std::unique_lock lock(mutex_);
    if (calling_back != this) {
      changed_.wait(lock, [&] { return pending_.size() < max_in_flight_ || !reading_ || closing_; });
    }
    if (!reading_) {
      changed_.wait(lock, [&] { return ended_; });  // its status is on its way
      return status_.ok() ? absl::UnavailableError("the server has ended the stream") : status_;
    }
    if (closing_) return absl::FailedPreconditionError("the stream is closed");
    const std::uint64_t id = next_id_++;
    request.head.set_request_id(id);
    pending_.emplace(id, std::move(done));
    Write(EncodeStreamForward(request));
    return id;
  }

  void Cancel(std::uint64_t id) {
    std::lock_guard lock(mutex_);
    if (reading_ && !closing_ && pending_.contains(id)) Write(EncodeStreamCancel(id));
  }

  absl::Status Close() {
    std::unique_lock lock(mutex_);
    if (!closing_) {
      closing_ = true;
      changed_.notify_all();
      if (reading_ && !writing_) StartWritesDone();
    }
    changed_.wait(lock, [&] { return done_; });
    return status_;
  }

  void Abort() { context_.TryCancel(); }

  bool ended() const {
    std::lock_guard lock(mutex_);
    return !reading_;
  }

 private:
  void Write(grpc::ByteBuffer message) {  // under mutex_
    outgoing_.push_back(std::move(message));
    if (!writing_) {
      writing_ = true;
      StartWrite(&outgoing_.front());
    }
  }

  void OnWriteDone(bool ok) override {
    std::lock_guard lock(mutex_);
    outgoing_.pop_front();
    writing_ = ok && reading_ && !outgoing_.empty();
    if (writing_) {
      StartWrite(&outgoing_.front());
    } else if (!ok || !reading_) {
      outgoing_.clear();  // the call is over: OnDone tells everybody
    } else if (closing_) {
      StartWritesDone();
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) {
      std::lock_guard lock(mutex_);
      reading_ = false;
      changed_.notify_all();
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

  void Complete(Answer answer) {
    Done done;
    {
      std::lock_guard lock(mutex_);
      const auto found = pending_.find(answer.response.request_id());
      if (found == pending_.end()) return;
      done = std::move(found->second);
      pending_.erase(found);
    }
    const absl::Status error = ErrorOf(answer.response);
    calling_back = this;
    if (error.ok()) {
      done(std::move(answer));
    } else {
      done(error);
    }
    calling_back = nullptr;
    changed_.notify_all();
  }

  void OnDone(const grpc::Status& status) override {
    std::unordered_map<std::uint64_t, Done> orphans;
    absl::Status reason = FromGrpc(status);
    {
      std::lock_guard lock(mutex_);
      reading_ = false;
      orphans.swap(pending_);
      status_ = reason;
      ended_ = true;
      changed_.notify_all();
    }
    if (reason.ok()) reason = absl::InternalError("the stream ended without an answer to this request");
    calling_back = this;
    for (auto& [id, done] : orphans) done(reason);
    calling_back = nullptr;
    std::lock_guard lock(mutex_);
    done_ = true;
    changed_.notify_all();  // under the lock: the waiter may destroy this
  }

  const std::shared_ptr<grpc::Channel> channel_;
  const std::size_t max_in_flight_;
  grpc::ClientContext context_;
  grpc::ByteBuffer incoming_;  // only the read in progress touches it

  mutable std::mutex mutex_;  // guards everything below
  std::condition_variable changed_;
  std::uint64_t next_id_ = 1;
  std::unordered_map<std::uint64_t, Done> pending_;
  std::deque<grpc::ByteBuffer> outgoing_;  // front: being written while writing_
  bool writing_ = false;
  bool reading_ = true;   // false: nothing more will come
  bool closing_ = false;  // Close was called
  bool ended_ = false;    // status_ is known
  bool done_ = false;     // ... and every callback has returned
  absl::Status status_;
};

Stream::Stream(const std::shared_ptr<grpc::Channel>& channel, int max_in_flight)
    : reactor_(std::make_unique<Reactor>(channel, max_in_flight)) {}
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
