#include "server/lane/server_ring.h"

#include <linux/futex.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <climits>
#include <cstring>
#include <new>
#include <utility>

#include "absl/strings/str_cat.h"

namespace expertd {

absl::StatusOr<lane::RingGeometry> CheckRingGeometry(std::uint32_t slots, std::uint32_t slot_bytes) {
  if (slots < lane::kMinSlots || slots > lane::kMaxSlots || !std::has_single_bit(slots)) {
    return absl::InvalidArgumentError(absl::StrCat("create_region.ring_slots: ", slots, " is not a power of two in ",
                                                   lane::kMinSlots, "..", lane::kMaxSlots));
  }
  if (slot_bytes < lane::kMinSlotBytes || slot_bytes > lane::kMaxSlotBytes || slot_bytes % lane::kCacheLine != 0) {
    return absl::InvalidArgumentError(absl::StrCat("create_region.slot_bytes: ", slot_bytes, " is not a multiple of ",
                                                   lane::kCacheLine, " in ", lane::kMinSlotBytes, "..",
                                                   lane::kMaxSlotBytes));
  }
  return lane::RingGeometry{.slots = slots, .slot_bytes = slot_bytes};
}

absl::StatusOr<std::shared_ptr<ServerRing>> ServerRing::Create(std::shared_ptr<Region> region,
                                                               const lane::RingGeometry& geometry) {
  Descriptor doorbell(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
  if (!doorbell) return absl::ResourceExhaustedError(absl::StrCat("ring: eventfd: ", std::strerror(errno)));
  return std::shared_ptr<ServerRing>(new ServerRing(std::move(region), geometry, std::move(doorbell)));
}

ServerRing::ServerRing(std::shared_ptr<Region> region, const lane::RingGeometry& geometry, Descriptor doorbell)
    : region_(std::move(region)),
      geometry_(geometry),
      doorbell_(std::move(doorbell)),
      header_(*new (region_->data()) lane::RingHeader{}) {
  header_.magic = lane::kRingMagic;
  header_.slots = geometry.slots;
  header_.slot_bytes = geometry.slot_bytes;
}

absl::StatusOr<bool> ServerRing::Take(std::string* message) {
  MutexLock lock(mutex_);
  const std::uint32_t waiting = header_.request_tail.load() - taken_;
  if (closed_ || waiting == 0) return false;
  if (waiting > geometry_.slots) return Broken("request_tail", waiting);
  const std::uint32_t untaken = answered_ - header_.answer_head.load();
  if (untaken > geometry_.slots) return Broken("answer_head", untaken);
  if (unsettled_ + untaken >= geometry_.slots) return false;

  const std::byte* slot = region_->data() + geometry_.request_slot(taken_);
  std::uint32_t size = 0;
  std::memcpy(&size, slot, sizeof(size));
  if (size > geometry_.message_bytes()) {
    closed_ = true;
    return absl::InvalidArgumentError(
        absl::StrCat("ring: a request of ", size, " bytes, a slot holds ", geometry_.message_bytes()));
  }
  message->assign(reinterpret_cast<const char*>(slot + lane::kSlotHeader), size);
  header_.request_head.store(++taken_);
  ++unsettled_;
  return true;
}

absl::Status ServerRing::Broken(absl::string_view counter, std::uint32_t ahead) {
  closed_ = true;
  return absl::InvalidArgumentError(
      absl::StrCat("ring: ", counter, " leaves ", ahead, " messages, there are ", geometry_.slots, " slots"));
}

void ServerRing::Answer(absl::string_view answer) {
  {
    MutexLock lock(mutex_);
    // There is a slot: Take counts what is unsettled and what the peer has not taken. A peer that takes its word back
    // overwrites its own answers.
    std::byte* slot = region_->data() + geometry_.answer_slot(answered_);
    const auto size = static_cast<std::uint32_t>(answer.size());
    std::memcpy(slot, &size, sizeof(size));
    std::memcpy(slot + lane::kSlotHeader, answer.data(), size);
    header_.answer_tail.store(++answered_);
  }
  Wake();
  Settle();
}

void ServerRing::Settle() {
  std::function<void()> idle;
  {
    MutexLock lock(mutex_);
    if (--unsettled_ > 0 || on_idle_ == nullptr) return;
    idle = std::exchange(on_idle_, nullptr);
  }
  header_.closed.store(1);
  Wake();
  idle();
}

void ServerRing::Close(std::function<void()> on_idle) {
  {
    MutexLock lock(mutex_);
    closed_ = true;
    if (std::exchange(closing_, true)) return;
    if (unsettled_ > 0) {
      on_idle_ = std::move(on_idle);
      return;
    }
  }
  header_.closed.store(1);
  Wake();
  on_idle();
}

void ServerRing::SetSleeping(bool sleeping) { header_.server_sleeps.store(sleeping ? 1 : 0); }

void ServerRing::Wake() {
  if (header_.client_sleeps.load() == 0) return;
  // Shared between processes, hence not FUTEX_PRIVATE. Fails at most because nobody waits.
  syscall(SYS_futex, &header_.answer_tail, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

}  // namespace expertd
