// The Session RPC: asks the fast lane for regions, and owns them until it ends.
#pragma once

#include <expertd/v1/expertd.grpc.pb.h>
#include <grpcpp/support/server_callback.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "server/call_registry.h"
#include "server/caller.h"
#include "server/lane/fast_lane.h"
#include "server/request_path.h"
#include "server/ring_requests.h"

namespace expertd {

// Reads one message, answers it, reads the next. Lives from Open until gRPC is done with it and the rings' last
// requests were answered, whichever is later.
class SessionStream final : public grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>,
                            public Call,
                            public std::enable_shared_from_this<SessionStream> {
 public:
  using Reactor = grpc::ServerBidiReactor<v1::SessionRequest, v1::SessionResponse>;

  struct Setup {
    FastLane& lane;
    RequestPath& path;
    CallRegistry& calls;  // all must outlive the stream
    Caller caller;        // admitted
    grpc::CallbackServerContext* context;
  };
  // What the handler returns.
  static Reactor* Open(Setup setup);
  // What it returns for a session that is refused.
  static Reactor* Refuse(RequestPath& path, grpc::CallbackServerContext* context, const absl::Status& refusal);

  explicit SessionStream(Setup setup);

  // Takes no more from the rings, answers what it took, ends. Regions are found until then: requests of other streams
  // may still name them.
  void Drain() override;

 private:
  struct Ring {
    std::shared_ptr<ServerRing> ring;
    std::shared_ptr<RingRequests> requests;
  };

  void OnReadDone(bool ok) override;
  void OnWriteDone(bool ok) override;
  void OnCancel() override;
  void OnDone() override;

  void Read();
  // Fills `response_`.
  void Handle(const v1::SessionRequest& request);
  absl::Status CreateRegion(const v1::CreateRegion& wish, v1::RegionCreated* created);

  // The session ends with `status`; only the first call counts. `gone`: nobody waits for what is in flight.
  void End(absl::Status status, bool gone);
  void RingIdle();
  // Finishes when it has ended and nothing is going on any more.
  void FinishIfDone();

  FastLane& lane_;
  RequestPath& path_;
  CallRegistry& calls_;
  const Caller caller_;
  const Clock::time_point opened_ = Clock::now();

  // Owned by the read, the handling or the write that is in progress: there is one at most.
  v1::SessionRequest request_;
  v1::SessionResponse response_;

  Mutex mutex_;
  std::unique_ptr<LaneSession> session_ ABSL_GUARDED_BY(mutex_);
  std::vector<Ring> rings_ ABSL_GUARDED_BY(mutex_);
  std::optional<absl::Status> end_ ABSL_GUARDED_BY(mutex_);
  std::size_t busy_rings_ ABSL_GUARDED_BY(mutex_) = 0;  // that were closed and are not idle
  int acting_ ABSL_GUARDED_BY(mutex_) = 0;              // threads that start an operation, or close the rings
  bool writing_ ABSL_GUARDED_BY(mutex_) = false;
  bool finished_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace expertd
