// The calls in progress: who owns them, how they are asked to end, and when the last one has.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "server/job.h"

namespace grpc {
class ServerContextBase;
}

namespace expertd {

// What calls that a draining server refuses or ends are told.
absl::Status DrainingError();
// What streams are told that end because their connection is to.
absl::Status RotationError();

// One RPC in progress. gRPC's context is valid until the transport has reported the call done; a call itself lives
// longer when a job still refers to it.
class Call {
 public:
  explicit Call(grpc::ServerContextBase* context) : context_(context) {}
  virtual ~Call() = default;

  // Takes no more messages, answers what it has accepted, ends.
  virtual void Drain() = 0;
  // The same for a stream that has lasted long enough; other calls end soon anyway.
  virtual void Rotate() {}
  Clock::time_point start() const { return start_; }

  // Bytes of answers made and not yet taken by the transport.
  std::int64_t unsent_bytes() const { return unsent_bytes_; }
  // Whether it is writing, since before `limit`.
  bool IsWritingSince(Clock::time_point limit) const;
  // Who calls: an address and a port, so one connection. Empty when the call is over.
  std::string Peer();
  // True when it did, once.
  bool Cancel();

 protected:
  void AddUnsent(std::int64_t bytes) { unsent_bytes_ += bytes; }
  void WriteStarts() { writing_since_ = Clock::now().time_since_epoch().count(); }
  // Returns how many seconds the write took.
  double WriteEnds();
  // To be called when the transport reports the call done: `context` goes away.
  void ForgetContext();

 private:
  const Clock::time_point start_ = Clock::now();
  std::atomic<Clock::rep> writing_since_{0};  // 0: not writing
  std::atomic<std::int64_t> unsent_bytes_{0};
  Mutex mutex_;
  grpc::ServerContextBase* context_ ABSL_GUARDED_BY(mutex_);
};

// What answers may hold that callers do not take.
struct OutputLimits {
  // A write that takes longer is the end of its call; one that takes longer than a tenth of that counts as stalled.
  std::chrono::milliseconds write_timeout{5000};
  // Of one call, of all calls of a connection, of all calls: beyond, stalled calls are cancelled.
  std::int64_t call_bytes = 64 << 20;
  std::int64_t peer_bytes = 256 << 20;
  std::int64_t server_bytes = 512 << 20;
};

// How many calls were cancelled for what.
struct SlowReaders {
  int timed_out = 0;
  int over_budget = 0;
};

// Self-synchronised. Owns calls from Add to Remove.
class CallRegistry {
 public:
  explicit CallRegistry(const OutputLimits& output = {}) : output_(output) {}

  const OutputLimits& output() const { return output_; }

  // False while draining: the call is refused and not kept.
  bool Add(std::shared_ptr<Call> call);
  void Remove(const Call* call);

  // Refuses new calls from now on and drains those in progress.
  void BeginDrain();
  // False when some call was still in progress at `deadline`.
  bool WaitUntilEmpty(Clock::time_point deadline);

  // Asks streams that began before `limit` to end.
  void RotateOlderThan(Clock::time_point limit);

  // To be called a few times in a tenth of the write timeout.
  SlowReaders CancelSlowReaders(Clock::time_point now);

  std::int64_t size() const;
  std::int64_t unsent_bytes() const;

 private:
  std::vector<std::shared_ptr<Call>> Snapshot() const;

  const OutputLimits output_;

  mutable Mutex mutex_;
  CondVar empty_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<const Call*, std::shared_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
