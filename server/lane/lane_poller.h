// The one thread that looks at all rings and hands descriptors out.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"
#include "server/lane/handoff.h"
#include "server/lane/server_ring.h"

namespace expertd {

// What becomes of a ring's messages. Called from the poller's thread, outside locks; must not block for long.
struct RingHandler {
  // A request. The handler settles it (ServerRing::Answer or NoAnswer), now or later, from any thread.
  std::function<void(absl::string_view message)> on_message;
  // Once: the peer broke the ring.
  std::function<void(const absl::Status& reason)> on_broken;
};

// Thread-safe.
class LanePoller {
 public:
  // After its last message the thread goes on looking for `spin` before it sleeps and has to be woken by a doorbell;
  // meanwhile it keeps a core busy. `handoff` may be null; otherwise it must outlive the poller. ResourceExhausted: no
  // descriptor.
  static absl::StatusOr<std::unique_ptr<LanePoller>> Start(Handoff* handoff, std::chrono::microseconds spin);
  ~LanePoller();

  void Add(std::shared_ptr<ServerRing> ring, RingHandler handler);
  // The handler may still be at work when this returns, but is not called again; close the ring to know when all that
  // it took is settled.
  void Remove(const ServerRing* ring);

 private:
  struct Port {
    std::shared_ptr<ServerRing> ring;
    RingHandler handler;
  };
  using Ports = std::vector<std::shared_ptr<const Port>>;

  LanePoller(Handoff* handoff, std::chrono::microseconds spin, Descriptor events, Descriptor wake);

  void Run();
  // Takes at most one message of each ring; whether there was any.
  bool Look(const Ports& ports);
  // Until something happens, or not at all when something has.
  void Sleep(const Ports& ports);
  void HandleEvents(int timeout_ms);
  std::shared_ptr<const Ports> Snapshot() const;
  void Wake();

  Handoff* const handoff_;
  const std::chrono::microseconds spin_;
  const Descriptor events_;  // an epoll of all doorbells, the handoff and wake_
  const Descriptor wake_;    // an eventfd of our own
  std::string message_;      // the thread's

  mutable Mutex mutex_;
  // Replaced, never changed: the thread looks at what it found.
  std::shared_ptr<const Ports> ports_ ABSL_GUARDED_BY(mutex_) = std::make_shared<Ports>();
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

}  // namespace expertd
