#include "client/cpp/ring_client.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace expertd::client {
namespace {

using Clock = std::chrono::steady_clock;

// A sleep that is not ended by the server ends by itself: a server that was killed wakes nobody.
constexpr std::chrono::milliseconds kLongestSleep{100};

void SleepWhile(std::atomic<std::uint32_t>& word, std::uint32_t value, Clock::duration longest) {
  const auto nanoseconds = std::chrono::nanoseconds(longest).count();
  const timespec timeout = {.tv_sec = nanoseconds / 1'000'000'000, .tv_nsec = nanoseconds % 1'000'000'000};
  syscall(SYS_futex, &word, FUTEX_WAIT, value, &timeout, nullptr, 0);
}

}  // namespace

absl::StatusOr<RingClient> RingClient::Attach(std::byte* memory, std::size_t bytes, int doorbell,
                                              std::chrono::microseconds spin) {
  if (bytes < sizeof(lane::RingHeader)) return absl::InternalError("region: too small for a ring");
  const auto& header = *reinterpret_cast<const lane::RingHeader*>(memory);
  const lane::RingGeometry geometry = {.slots = header.slots, .slot_bytes = header.slot_bytes};
  const bool sane = header.magic == lane::kRingMagic && std::has_single_bit(geometry.slots) &&
                    geometry.slots <= lane::kMaxSlots && geometry.slot_bytes >= lane::kMinSlotBytes &&
                    geometry.slot_bytes <= lane::kMaxSlotBytes && geometry.bytes() <= bytes;
  if (!sane) {
    return absl::InternalError(absl::StrCat("region: no ring of ", geometry.slots, " slots of ", geometry.slot_bytes,
                                            " bytes in ", bytes, " bytes"));
  }
  return RingClient(memory, geometry, doorbell, spin);
}

absl::Status RingClient::Send(absl::string_view message, bool wants_answer) {
  if (message.size() > geometry_.message_bytes()) {
    return absl::InvalidArgumentError(
        absl::StrCat("request: ", message.size(), " bytes, a slot holds ", geometry_.message_bytes()));
  }
  if (header().closed.load() != 0) return absl::UnavailableError("ring: the session has ended");
  const bool full = sent_ - header().request_head.load() >= geometry_.slots;
  if (full || (wants_answer && unanswered_ >= geometry_.slots)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("ring: ", unanswered_, " requests are unanswered, there are ", geometry_.slots, " slots"));
  }
  std::byte* slot = memory_ + geometry_.request_slot(sent_);
  const auto size = static_cast<std::uint32_t>(message.size());
  std::memcpy(slot, &size, sizeof(size));
  std::memcpy(slot + lane::kSlotHeader, message.data(), size);
  header().request_tail.store(++sent_);
  if (wants_answer) ++unanswered_;
  if (header().server_sleeps.load() != 0) {
    const std::uint64_t one = 1;
    [[maybe_unused]] const ssize_t written = write(doorbell_, &one, sizeof(one));  // a counter: it cannot be full
  }
  return absl::OkStatus();
}

absl::Status RingClient::Receive(std::chrono::microseconds timeout, std::string* answer) {
  const Clock::time_point deadline =
      timeout >= std::chrono::hours(24 * 365) ? Clock::time_point::max() : Clock::now() + timeout;
  while (header().answer_tail.load() == received_) {
    // What was answered before the ring was closed is still there, hence the second look.
    if (header().closed.load() != 0 && header().answer_tail.load() == received_) {
      return absl::UnavailableError("ring: the session has ended");
    }
    if (Clock::now() >= deadline) return absl::DeadlineExceededError("ring: no answer in time");
    Await(deadline);
  }
  const std::byte* slot = memory_ + geometry_.answer_slot(received_);
  std::uint32_t size = 0;
  std::memcpy(&size, slot, sizeof(size));
  if (size > geometry_.message_bytes()) return absl::InternalError(absl::StrCat("ring: an answer of ", size, " bytes"));
  answer->assign(reinterpret_cast<const char*>(slot + lane::kSlotHeader), size);
  header().answer_head.store(++received_);
  if (unanswered_ > 0) --unanswered_;
  return absl::OkStatus();
}

void RingClient::Await(Clock::time_point deadline) {
  lane::RingHeader& ring = header();
  const auto moved = [&] { return ring.answer_tail.load() != received_ || ring.closed.load() != 0; };
  const Clock::time_point spin_until = std::min(deadline, Clock::now() + spin_);
  while (Clock::now() < spin_until) {
    if (moved()) return;
    lane::SpinPause();
  }
  ring.client_sleeps.store(1);
  if (!moved()) {
    const Clock::duration left = deadline == Clock::time_point::max() ? kLongestSleep : deadline - Clock::now();
    if (left > Clock::duration::zero()) {
      SleepWhile(ring.answer_tail, received_, std::min<Clock::duration>(left, kLongestSleep));
    }
  }
  ring.client_sleeps.store(0);
}

}  // namespace expertd::client
