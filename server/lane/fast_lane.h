// The same-host fast lane: sessions that own regions and rings. No gRPC: who speaks with the peer is somebody else's
// business (session_stream.h), and what requests mean too (ring_requests.h).
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "server/lane/handoff.h"
#include "server/lane/lane_poller.h"
#include "server/lane/region.h"
#include "server/lane/server_ring.h"

namespace expertd {

struct FastLaneOptions {
  std::string socket_path;
  std::uint64_t max_bytes = 0;              // of all sessions' regions in host memory
  std::uint64_t max_device_bytes = 0;       // likewise on the device; 0: none
  std::uint64_t max_bytes_per_session = 0;  // of both
  std::int64_t max_regions_per_session = 0;
  std::uint32_t max_ring_slots = lane::kMaxSlots;  // requests of one ring in flight
  std::chrono::microseconds spin{0};               // see LanePoller
};

// Thread-safe.
class FastLane {
 public:
  // Errors of Handoff::Listen and LanePoller::Start. `engine`, which exports device memory, and `regions` must outlive
  // it.
  static absl::StatusOr<std::unique_ptr<FastLane>> Start(const FastLaneOptions& options, Engine& engine,
                                                         RegionTable& regions);

  const FastLaneOptions& options() const { return options_; }
  std::uint64_t bytes_in_use() const { return budget_->in_use(); }
  std::uint64_t device_bytes_in_use() const { return device_budget_->in_use(); }

 private:
  friend class LaneSession;
  FastLane(const FastLaneOptions& options, Engine& engine, RegionTable& regions, std::unique_ptr<Handoff> handoff)
      : options_(options),
        engine_(engine),
        regions_(regions),
        budget_(std::make_shared<RegionBudget>("--fast-lane-mib", options.max_bytes)),
        device_budget_(std::make_shared<RegionBudget>("--fast-lane-device-mib", options.max_device_bytes)),
        handoff_(std::move(handoff)) {}

  const FastLaneOptions options_;
  Engine& engine_;
  RegionTable& regions_;
  const std::shared_ptr<RegionBudget> budget_, device_budget_;
  const std::unique_ptr<Handoff> handoff_;
  std::unique_ptr<LanePoller> poller_;  // set before anybody sees the object; last: its thread uses the handoff
};

// What a peer asks for.
struct RegionWish {
  std::uint64_t bytes = 0;  // for rows
  bool on_device = false;
  std::uint32_t ring_slots = 0;  // 0: no ring
  std::uint32_t slot_bytes = 0;
};

struct NewRegion {
  std::shared_ptr<Region> region;
  std::shared_ptr<ServerRing> ring;  // null: none; the poller does not know it yet
  std::string socket, token;         // of a region in host memory
  std::string device_uuid;           // of one on the device
};

// One peer's. Not thread-safe but for destruction's effects: when it is gone its regions are found no more and its
// tokens are void; regions and rings live on as long as requests use them.
class LaneSession {
 public:
  explicit LaneSession(FastLane& lane) : lane_(lane) {}
  ~LaneSession();
  LaneSession(const LaneSession&) = delete;
  LaneSession& operator=(const LaneSession&) = delete;

  // InvalidArgument naming field, value and limit; ResourceExhausted: the session's limits, all sessions' budget, or
  // the machine's. On the device also FailedPrecondition: the server offers none; Unimplemented: its engine has
  // none; and Engine::ExportMemory's.
  absl::StatusOr<NewRegion> CreateRegion(const RegionWish& wish);

  // Messages of the ring go to `handler` until StopRing, or until the session ends.
  void StartRing(std::shared_ptr<ServerRing> ring, RingHandler handler);
  void StopRings();

 private:
  absl::StatusOr<NewRegion> CreateOnHost(const RegionWish& wish, std::uint64_t left);
  absl::StatusOr<NewRegion> CreateOnDevice(const RegionWish& wish, std::uint64_t left);

  struct Owned {
    std::shared_ptr<Region> region;
    std::shared_ptr<ServerRing> ring;
    std::string token;
  };

  FastLane& lane_;
  std::vector<Owned> owned_;
  std::uint64_t bytes_ = 0;
};

}  // namespace expertd
