// The client's side of a doorbell ring (proto/expertd/lane/ring.h): messages as bytes. No gRPC.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "proto/expertd/lane/ring.h"

namespace expertd::client {

// For one thread at a time. Refers to the region's memory and to the doorbell, which must outlive it.
class RingClient {
 public:
  // `memory` begins with a ring, and `bytes` are mapped of it. After its last answer Receive looks for the next one for
  // `spin`, which keeps a core busy, before it sleeps. Internal: there is no ring, or it does not fit.
  static absl::StatusOr<RingClient> Attach(std::byte* memory, std::size_t bytes, int doorbell,
                                           std::chrono::microseconds spin);

  // Puts a StreamRequest into the ring. InvalidArgument: larger than a slot holds; ResourceExhausted: as many requests
  // as there are slots are unanswered, so Receive first; Unavailable: the session has ended. A message that will have
  // no answer (a Cancel) says so.
  absl::Status Send(absl::string_view message, bool wants_answer = true);

  // Waits for the next ForwardResponse. DeadlineExceeded: none in time; Unavailable: the session has ended and none
  // will come; Internal: the server broke the ring.
  absl::Status Receive(std::chrono::microseconds timeout, std::string* answer);

  std::size_t message_bytes() const { return geometry_.message_bytes(); }
  std::uint32_t slots() const { return geometry_.slots; }

 private:
  RingClient(std::byte* memory, const lane::RingGeometry& geometry, int doorbell, std::chrono::microseconds spin)
      : memory_(memory), geometry_(geometry), doorbell_(doorbell), spin_(spin) {}

  lane::RingHeader& header() const { return *reinterpret_cast<lane::RingHeader*>(memory_); }
  // Until answer_tail moves, the ring is closed, or `deadline`.
  void Await(std::chrono::steady_clock::time_point deadline);

  std::byte* memory_;
  lane::RingGeometry geometry_;
  int doorbell_;
  std::chrono::microseconds spin_;
  std::uint32_t sent_ = 0;
  std::uint32_t received_ = 0;
  std::uint32_t unanswered_ = 0;
};

}  // namespace expertd::client
