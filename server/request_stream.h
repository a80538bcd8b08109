// A stream of pipelined requests, whatever protocol they are written in.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "server/call_registry.h"
#include "server/caller.h"
#include "server/request_path.h"

namespace expertd {

// One stream. Lives from Open until gRPC is done with it and its last request was answered, whichever is later. A
// protocol's own class reads its messages (Handle) and says how its errors look.
//
// Events change the state under the mutex and then call Advance, which looks for what can be done now (read, write,
// finish), and does it outside the mutex. The stream is finished only by who finds nothing else to do and nobody else
// doing anything, so no operation is started on a stream that has ended.
class RequestStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                      public Call,
                      public std::enable_shared_from_this<RequestStream> {
 public:
  using Reactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;
  // In which answers are written.
  enum class Order { kCompletion, kRequest };

  struct Setup {
    RequestPath& path;
    CallRegistry& calls;  // both must outlive the stream
    Caller caller;        // admitted
    grpc::CallbackServerContext* context;
    std::int64_t max_in_flight;
  };

  // What a raw bidirectional handler returns for a stream that was just made.
  static Reactor* Open(const std::shared_ptr<RequestStream>& stream, grpc::CallbackServerContext* context);
  // What it returns for a stream that is refused.
  static Reactor* Refuse(RequestPath& path, Rpc rpc, grpc::CallbackServerContext* context, const absl::Status& refusal);

  RequestStream(Setup setup, Rpc rpc, Order order)
      : Call(setup.context),
        path_(setup.path),
        calls_(setup.calls),
        caller_(std::move(setup.caller)),
        max_in_flight_(setup.max_in_flight),
        rpc_(rpc),
        order_(order) {}

  void Drain() override { EndWith(DrainingError()); }
  void Rotate() override { EndWith(RotationError()); }

 protected:
  // The message that answers a request with an error.
  using ErrorFn = std::function<grpc::ByteBuffer(const absl::Status& status)>;

  // Reads one message and calls one of those below for it. One at a time.
  virtual void Handle(const grpc::ByteBuffer& message) = 0;

  // `id` must differ from all requests in flight; in Order::kRequest ids count from 0. `payload` is what the head's
  // ranges refer to, copied before this returns. A head that is an error is answered like any other refusal.
  void Submit(std::uint64_t id, absl::StatusOr<ForwardHead> head, Slices payload, Clock::time_point time,
              AnswerForm form, ErrorFn error);
  void CancelRequest(std::uint64_t id);
  // No more messages; `status` is what the stream ends with.
  void Stop(absl::Status status);
  // From outside a message: also ends it, when nothing is left to do.
  void EndWith(absl::Status status);

  RequestPath& path() const { return path_; }
  const Caller& caller() const { return caller_; }

 private:
  struct Actions {
    bool read = false;
    bool write = false;
    bool more = false;  // another answer is waiting behind the one to write
    std::optional<absl::Status> finish;
  };

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Answered(std::uint64_t id, grpc::ByteBuffer message);
  // In the order that was promised.
  void QueueAnswer(std::uint64_t id, grpc::ByteBuffer message) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Counts an answer that waits to be sent.
  void Keep(const grpc::ByteBuffer& message) { AddUnsent(static_cast<std::int64_t>(message.Length())); }
  void StopReading(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Advance();
  Actions Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  RequestPath& path_;
  CallRegistry& calls_;
  const Caller caller_;
  const std::int64_t max_in_flight_;
  const Rpc rpc_;
  const Order order_;

  // Owned by the read or the write that is in progress.
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;

  Mutex mutex_;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // set: reading has stopped
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;             // from StartRead until the message was handled
  bool handling_ ABSL_GUARDED_BY(mutex_) = false;            // a message was read and is not in in_flight_ yet
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool headers_sent_ ABSL_GUARDED_BY(mutex_) = false;  // with the first write
  std::int64_t writing_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;    // cancelled, or a write failed: nothing can be answered
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was decided
  int acting_ ABSL_GUARDED_BY(mutex_) = 0;         // threads between a decision and its act
  // By request id; no job id yet while Submit is at work.
  absl::flat_hash_map<std::uint64_t, std::optional<Scheduler::JobId>> in_flight_ ABSL_GUARDED_BY(mutex_);
  std::deque<grpc::ByteBuffer> answers_ ABSL_GUARDED_BY(mutex_);
  // Order::kRequest: the id whose answer is due, and what was answered before its turn.
  std::uint64_t next_answer_ ABSL_GUARDED_BY(mutex_) = 0;
  std::map<std::uint64_t, grpc::ByteBuffer> early_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
