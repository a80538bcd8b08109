// The server's side of a doorbell ring (proto/expertd/lane/ring.h).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"
#include "proto/expertd/lane/ring.h"
#include "server/lane/memory_file.h"
#include "server/lane/region.h"

namespace expertd {

// InvalidArgument naming the field and its limits. slots > 0.
absl::StatusOr<lane::RingGeometry> CheckRingGeometry(std::uint32_t slots, std::uint32_t slot_bytes);

// Thread-safe. Trusts nothing in shared memory: counters and lengths are read once and held against the geometry, and
// messages are copied before anybody looks at them.
class ServerRing {
 public:
  // Lays the ring out at the beginning of the region, and makes its doorbell. ResourceExhausted: no descriptor.
  static absl::StatusOr<std::shared_ptr<ServerRing>> Create(std::shared_ptr<Region> region,
                                                            const lane::RingGeometry& geometry);

  // Copies the next request out. False: there is none, or the peer has to take answers first, or the ring is closed.
  // InvalidArgument: the peer broke the contract; the ring is then closed.
  absl::StatusOr<bool> Take(std::string* message);
  // To be called once for each message that was taken: with its answer, at most message_bytes() long, or with nothing
  // for a message that has none.
  void Answer(absl::string_view answer);
  void NoAnswer() { Settle(); }

  // Nothing is taken from now on. `on_idle` is called, here or by the last Answer, when all that was taken is settled;
  // the peer is then told that no answer comes any more. Only the first call counts.
  void Close(std::function<void()> on_idle);

  // Whether the peer has to ring. Set before going to sleep, and then Take once more.
  void SetSleeping(bool sleeping);
  // Readable, edge-triggered, when the peer rings. It is never read: its flags are the peer's to change, and a read
  // might block.
  int doorbell() const { return doorbell_.get(); }

  std::size_t message_bytes() const { return geometry_.message_bytes(); }
  const Region& region() const { return *region_; }

 private:
  ServerRing(std::shared_ptr<Region> region, const lane::RingGeometry& geometry, Descriptor doorbell);

  void Settle() ABSL_LOCKS_EXCLUDED(mutex_);
  absl::Status Broken(absl::string_view counter, std::uint32_t ahead) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Wake();

  const std::shared_ptr<Region> region_;
  const lane::RingGeometry geometry_;
  const Descriptor doorbell_;
  lane::RingHeader& header_;  // shared with the peer

  Mutex mutex_;
  std::uint32_t taken_ ABSL_GUARDED_BY(mutex_) = 0;      // what request_head says to the peer
  std::uint32_t answered_ ABSL_GUARDED_BY(mutex_) = 0;   // what answer_tail says to the peer
  std::uint32_t unsettled_ ABSL_GUARDED_BY(mutex_) = 0;  // taken and neither answered nor without an answer
  bool closed_ ABSL_GUARDED_BY(mutex_) = false;          // nothing is taken any more
  bool closing_ ABSL_GUARDED_BY(mutex_) = false;         // Close was called
  std::function<void()> on_idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
