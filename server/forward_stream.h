// ForwardStream: pipelined requests, answered in the order of completion.
#pragma once

#include <grpcpp/impl/codegen/server_context.h>
#include <grpcpp/support/byte_buffer.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "server/call_registry.h"
#include "server/caller.h"
#include "server/request_path.h"

namespace expertd {

// One stream. Lives from Start until gRPC is done with it and its last request was answered, whichever is later.
//
// Events change the state under the mutex and then call Advance, which looks for what can be done now (read, write,
// finish), and does it outside the mutex. The stream is finished only by who finds nothing else to do and nobody else
// doing anything, so no operation is started on a stream that has ended.
class ForwardStream : public grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>,
                      public Call,
                      public std::enable_shared_from_this<ForwardStream> {
 public:
  using Reactor = grpc::ServerBidiReactor<grpc::ByteBuffer, grpc::ByteBuffer>;

  // What a raw bidirectional handler returns for an admitted caller. `path` and `calls` must outlive the stream.
  static Reactor* Start(RequestPath& path, CallRegistry& calls, Caller caller, grpc::CallbackServerContext* context,
                        std::int64_t max_in_flight);
  // What it returns for a stream that is refused.
  static Reactor* Refuse(RequestPath& path, grpc::CallbackServerContext* context, const absl::Status& refusal);

  ForwardStream(RequestPath& path, CallRegistry& calls, Caller caller, grpc::CallbackServerContext* context,
                std::int64_t max_in_flight)
      : Call(context), path_(path), calls_(calls), caller_(std::move(caller)), max_in_flight_(max_in_flight) {}

  void Drain() override;

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

  // One message that was read.
  void Handle(const grpc::ByteBuffer& message);
  void Submit(absl::StatusOr<ForwardHead> head, Slices slices, std::uint64_t request_id, Clock::time_point time);
  void CancelRequest(std::uint64_t request_id);
  void Answered(std::uint64_t request_id, const absl::Status& status, grpc::ByteBuffer message);
  // Queues an answer to a request that was never in flight.
  void AnswerRefused(std::uint64_t request_id, const absl::Status& status);

  // No more messages; `status` is what the stream ends with.
  void StopReading(absl::Status status) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Advance();
  Actions Next() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  RequestPath& path_;
  CallRegistry& calls_;
  const Caller caller_;
  const std::int64_t max_in_flight_;

  // Owned by the read or the write that is in progress.
  grpc::ByteBuffer incoming_;
  grpc::ByteBuffer outgoing_;

  Mutex mutex_;
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);  // set: reading has stopped
  bool reading_ ABSL_GUARDED_BY(mutex_) = false;             // from StartRead until the message was handled
  bool handling_ ABSL_GUARDED_BY(mutex_) = false;            // a message was read and is not in in_flight_ yet
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;    // cancelled, or a write failed: nothing can be answered
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;  // Finish was decided
  int acting_ ABSL_GUARDED_BY(mutex_) = 0;         // threads between a decision and its act
  // By request id; no job id yet while Submit is at work.
  absl::flat_hash_map<std::uint64_t, std::optional<Scheduler::JobId>> in_flight_ ABSL_GUARDED_BY(mutex_);
  std::deque<grpc::ByteBuffer> answers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
