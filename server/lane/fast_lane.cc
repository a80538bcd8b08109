#include "server/lane/fast_lane.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {
namespace {

std::size_t AlignUp(std::size_t bytes) { return (bytes + kRowAlignment - 1) / kRowAlignment * kRowAlignment; }

}  // namespace

absl::StatusOr<std::unique_ptr<FastLane>> FastLane::Start(const FastLaneOptions& options, Engine& engine,
                                                          RegionTable& regions) {
  absl::StatusOr<std::unique_ptr<Handoff>> handoff = Handoff::Listen(options.socket_path);
  if (!handoff.ok()) return handoff.status();
  std::unique_ptr<FastLane> lane(new FastLane(options, engine, regions, *std::move(handoff)));
  absl::StatusOr<std::unique_ptr<LanePoller>> poller = LanePoller::Start(lane->handoff_.get(), options.spin);
  if (!poller.ok()) return poller.status();
  lane->poller_ = *std::move(poller);
  return lane;
}

LaneSession::~LaneSession() {
  StopRings();
  for (const Owned& owned : owned_) {
    lane_.handoff_->Withdraw(owned.token);
    lane_.regions_.Remove(owned.region->handle());
  }
}

absl::StatusOr<NewRegion> LaneSession::CreateRegion(const RegionWish& wish) {
  const FastLaneOptions& limits = lane_.options_;
  if (static_cast<std::int64_t>(owned_.size()) >= limits.max_regions_per_session) {
    return absl::ResourceExhaustedError(absl::StrCat("create_region: the session has ", owned_.size(),
                                                     " regions (limit --fast-lane-regions ",
                                                     limits.max_regions_per_session, ")"));
  }
  if (wish.bytes == 0 && wish.ring_slots == 0) {
    return absl::InvalidArgumentError("create_region.bytes: 0, and no ring is asked for");
  }
  const std::uint64_t left = limits.max_bytes_per_session - bytes_;
  absl::StatusOr<NewRegion> made = wish.on_device ? CreateOnDevice(wish, left) : CreateOnHost(wish, left);
  if (!made.ok()) return made.status();
  lane_.regions_.Add(made->region);
  owned_.push_back({.region = made->region, .ring = nullptr, .token = made->token});
  return made;
}

absl::StatusOr<NewRegion> LaneSession::CreateOnHost(const RegionWish& wish, std::uint64_t left) {
  const FastLaneOptions& limits = lane_.options_;
  lane::RingGeometry geometry;
  std::size_t rows_offset = 0;
  if (wish.ring_slots > 0) {
    absl::StatusOr<lane::RingGeometry> checked = CheckRingGeometry(wish.ring_slots, wish.slot_bytes);
    if (!checked.ok()) return checked.status();
    if (wish.ring_slots > limits.max_ring_slots) {
      return absl::InvalidArgumentError(absl::StrCat("create_region.ring_slots: ", wish.ring_slots,
                                                     " are more than --max-in-flight-per-stream ",
                                                     limits.max_ring_slots));
    }
    geometry = *checked;
    rows_offset = AlignUp(geometry.bytes());
  }
  if (wish.bytes > left || rows_offset > left - wish.bytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "create_region.bytes: ", wish.bytes, " and ", rows_offset, " of a ring do not fit beside the ", bytes_,
        " of the session (limit --fast-lane-session-mib, ", limits.max_bytes_per_session, " bytes)"));
  }
  absl::StatusOr<std::shared_ptr<Region>> region =
      Region::Create(lane_.budget_, rows_offset + static_cast<std::size_t>(wish.bytes), rows_offset);
  if (!region.ok()) return region.status();
  (*region)->PinFor(lane_.engine_);

  NewRegion made = {.region = *std::move(region), .socket = lane_.handoff_->path()};
  if (wish.ring_slots > 0) {
    absl::StatusOr<std::shared_ptr<ServerRing>> ring = ServerRing::Create(made.region, geometry);
    if (!ring.ok()) return ring.status();
    made.ring = *std::move(ring);
  }
  made.token = lane_.handoff_->Offer({.region = made.region, .ring = made.ring});
  bytes_ += rows_offset + wish.bytes;
  return made;
}

absl::StatusOr<NewRegion> LaneSession::CreateOnDevice(const RegionWish& wish, std::uint64_t left) {
  const FastLaneOptions& limits = lane_.options_;
  if (limits.max_device_bytes == 0) {
    return absl::FailedPreconditionError(
        "create_region.memory: this server offers no device memory (--fast-lane-device-mib)");
  }
  if (lane_.engine_.info().device_uuid.empty()) {
    return absl::UnimplementedError("create_region.memory: this engine computes in host memory");
  }
  // The server's threads cannot look at a ring there.
  if (wish.ring_slots > 0) {
    return absl::InvalidArgumentError(absl::StrCat("create_region.ring_slots: ", wish.ring_slots,
                                                   ", must be 0 in device memory; a ring in a region of host memory "
                                                   "may name this one's rows"));
  }
  // No sum or product before the bytes are known to be few.
  if (wish.bytes > left || (wish.bytes + kExportedMultiple - 1) / kExportedMultiple * kExportedMultiple > left) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "create_region.bytes: ", wish.bytes, ", in whole ", kExportedMultiple >> 20, " MiB, do not fit beside the ",
        bytes_, " of the session (limit --fast-lane-session-mib, ", limits.max_bytes_per_session, " bytes)"));
  }
  absl::StatusOr<std::shared_ptr<Region>> region =
      Region::CreateOnDevice(lane_.device_budget_, lane_.engine_, static_cast<std::size_t>(wish.bytes));
  if (!region.ok()) return region.status();
  bytes_ += (*region)->size();
  return NewRegion{.region = *std::move(region), .device_uuid = lane_.engine_.info().device_uuid};
}

void LaneSession::StartRing(std::shared_ptr<ServerRing> ring, RingHandler handler) {
  for (Owned& owned : owned_) {
    if (owned.region.get() == &ring->region()) owned.ring = ring;
  }
  lane_.poller_->Add(std::move(ring), std::move(handler));
}

void LaneSession::StopRings() {
  for (Owned& owned : owned_) {
    if (owned.ring == nullptr) continue;
    lane_.poller_->Remove(owned.ring.get());
    owned.ring = nullptr;
  }
}

}  // namespace expertd
