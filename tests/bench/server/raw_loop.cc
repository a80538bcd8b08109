#include "tests/bench/server/raw_loop.h"

#include <grpcpp/client_context.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/support/client_callback.h>

#include <deque>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/base/mutex.h"

namespace expertd::bench {
namespace {

using Clock = std::chrono::steady_clock;
using grpc::ByteBuffer;

constexpr char kForwardMethod[] = "/expertd.v1.Expertd/Forward";
constexpr char kStreamMethod[] = "/expertd.v1.Expertd/ForwardStream";

// What all loops of a run share: the window, the counts, whether to go on.
class Meter {
 public:
  Meter(Clock::time_point begin, std::size_t least_bytes, const RawLoad& load)
      : begin_(begin), end_(begin + load.window), least_bytes_(least_bytes), look_(load.look) {}

  // False when the loop is over.
  bool Count(Clock::time_point sent, ByteBuffer& answer) {
    const auto now = Clock::now();
    MutexLock lock(mutex_);
    if (answer.Length() < least_bytes_) {
      status_ = absl::InternalError(
          absl::StrCat("an answer of ", answer.Length(), " bytes, at least ", least_bytes_, " wanted"));
    }
    if (now >= begin_ && now < end_) {
      latency_.Add(std::chrono::nanoseconds(now - sent).count());
      if (look_) look_(now - sent, answer);
    }
    return status_.ok() && now < end_;
  }

  void Fail(const grpc::Status& status) {
    MutexLock lock(mutex_);
    status_ = client::FromGrpc(status);
  }

  void Join() {
    MutexLock lock(mutex_);
    ++loops_;
  }
  void Leave() {
    MutexLock lock(mutex_);
    if (--loops_ == 0) idle_.NotifyAll();
  }

  absl::StatusOr<RawResult> Wait() {
    MutexLock lock(mutex_);
    while (loops_ > 0) idle_.Wait(mutex_);
    if (!status_.ok()) return status_;
    const double seconds = std::chrono::duration<double>(end_ - begin_).count();
    return RawResult{.requests_per_second = static_cast<double>(latency_.count()) / seconds, .latency = latency_};
  }

 private:
  const Clock::time_point begin_, end_;
  const std::size_t least_bytes_;
  const decltype(RawLoad::look) look_;
  Mutex mutex_;
  CondVar idle_;
  int loops_ ABSL_GUARDED_BY(mutex_) = 0;
  client::Histogram latency_ ABSL_GUARDED_BY(mutex_);
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
};

// One unary call after the other.
class UnaryLoop {
 public:
  UnaryLoop(std::shared_ptr<grpc::Channel> channel, client::Request request, Meter& meter)
      : stub_(std::move(channel)), request_(std::move(request)), meter_(meter) {
    meter_.Join();
    Send();
  }

 private:
  void Send() {
    context_ = std::make_unique<grpc::ClientContext>();
    message_ = client::EncodeForward(request_);
    answer_.Clear();
    sent_ = Clock::now();
    stub_.UnaryCall(context_.get(), kForwardMethod, {}, &message_, &answer_, [this](const grpc::Status& status) {
      if (!status.ok()) meter_.Fail(status);
      if (!status.ok() || !meter_.Count(sent_, answer_)) return meter_.Leave();
      Send();
    });
  }

  grpc::GenericStub stub_;
  client::Request request_;
  Meter& meter_;
  std::unique_ptr<grpc::ClientContext> context_;
  ByteBuffer message_, answer_;
  Clock::time_point sent_;
};

// A stream that keeps a number of requests in flight. Answers are taken for the oldest request: with one in flight that
// is exact, and with more only the rate is of interest.
class StreamLoop final : public grpc::ClientBidiReactor<ByteBuffer, ByteBuffer> {
 public:
  StreamLoop(std::shared_ptr<grpc::Channel> channel, client::Request request, int in_flight, Meter& meter)
      : request_(std::move(request)), meter_(meter) {
    meter_.Join();
    grpc::GenericStub(std::move(channel)).PrepareBidiStreamingCall(&context_, kStreamMethod, {}, this);
    StartRead(&answer_);
    {
      MutexLock lock(mutex_);
      for (int i = 0; i < in_flight; ++i) Send();
    }
    StartCall();
  }

 private:
  void Send() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    request_.head.set_request_id(++id_);
    outgoing_.push_back(client::EncodeStreamForward(request_));
    sent_.push_back(Clock::now());
    if (!writing_) Write();
  }

  void Write() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    writing_ = true;
    StartWrite(&outgoing_.front());
  }

  void OnWriteDone(bool ok) override {
    MutexLock lock(mutex_);
    outgoing_.pop_front();
    writing_ = false;
    if (!ok) outgoing_.clear();
    if (!outgoing_.empty()) {
      Write();
    } else if (closing_) {
      StartWritesDone();
    }
  }

  void OnReadDone(bool ok) override {
    if (!ok) return;
    {
      MutexLock lock(mutex_);
      const Clock::time_point sent = sent_.front();
      sent_.pop_front();
      if (meter_.Count(sent, answer_) && !closing_) {
        Send();
      } else if (!closing_) {
        closing_ = true;
        if (!writing_) StartWritesDone();
      }
    }
    answer_.Clear();
    StartRead(&answer_);
  }

  void OnDone(const grpc::Status& status) override {
    if (!status.ok()) meter_.Fail(status);
    meter_.Leave();
  }

  grpc::ClientContext context_;
  client::Request request_;
  Meter& meter_;
  ByteBuffer answer_;
  Mutex mutex_;
  std::deque<ByteBuffer> outgoing_ ABSL_GUARDED_BY(mutex_);
  std::deque<Clock::time_point> sent_ ABSL_GUARDED_BY(mutex_);
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;
  std::uint64_t id_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

absl::StatusOr<RawResult> RunRaw(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                                 const client::Request& request, const RawLoad& load) {
  const auto begin = Clock::now() + load.warmup;
  Meter meter(begin, request.hidden_states.size(), load);
  std::vector<std::unique_ptr<UnaryLoop>> calls;
  std::vector<std::unique_ptr<StreamLoop>> streams;
  for (const auto& channel : channels) {
    if (load.stream) {
      streams.push_back(std::make_unique<StreamLoop>(channel, request, load.in_flight, meter));
    } else {
      for (int i = 0; i < load.in_flight; ++i) calls.push_back(std::make_unique<UnaryLoop>(channel, request, meter));
    }
  }
  return meter.Wait();
}

}  // namespace expertd::bench
