// The calls in progress: who owns them, how they are asked to end, and when the last one has.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
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

// One RPC in progress. gRPC's context is valid until the transport has reported the call done; a call itself lives
// longer when a job still refers to it.
class Call {
 public:
  explicit Call(grpc::ServerContextBase* context) : context_(context) {}
  virtual ~Call() = default;

  // Takes no more messages, answers what it has accepted, ends.
  virtual void Drain() = 0;

  // Cancels the call if it is writing since before `limit`; true when it did, once.
  bool CancelIfWritingSince(Clock::time_point limit);

 protected:
  void WriteStarts() { writing_since_ = Clock::now().time_since_epoch().count(); }
  // Returns how many seconds the write took.
  double WriteEnds();
  // To be called when the transport reports the call done: `context` goes away.
  void ForgetContext();

 private:
  std::atomic<Clock::rep> writing_since_{0};  // 0: not writing
  Mutex mutex_;
  grpc::ServerContextBase* context_ ABSL_GUARDED_BY(mutex_);
};

// Self-synchronised. Owns calls from Add to Remove.
class CallRegistry {
 public:
  // False while draining: the call is refused and not kept.
  bool Add(std::shared_ptr<Call> call);
  void Remove(const Call* call);

  // Refuses new calls from now on and drains those in progress.
  void BeginDrain();
  // False when some call was still in progress at `deadline`.
  bool WaitUntilEmpty(Clock::time_point deadline);

  // Cancels calls whose peer has not read for longer than that; returns how many.
  int CancelStuckWrites(Clock::time_point limit);

  std::int64_t size() const;

 private:
  std::vector<std::shared_ptr<Call>> Snapshot() const;

  mutable Mutex mutex_;
  CondVar empty_;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  absl::flat_hash_map<const Call*, std::shared_ptr<Call>> calls_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
