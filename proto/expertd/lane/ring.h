// The doorbell ring: requests and answers of one session in memory that client and server share. Part of the wire
// contract: both sides are built on this header and nothing else.
//
// A region with a ring begins with
//
//   RingHeader
//   `slots` request slots of `slot_bytes`     client -> server, each a StreamRequest
//   `slots` answer slots of `slot_bytes`      server -> client, each a ForwardResponse
//   rows, from RegionCreated.rows_offset
//
// A slot is a u32 length, four bytes of nothing, and the message. Counters run freely and wrap: message number n lies
// in slot n % slots. A side owns the counters that it writes; what it reads of the other side it copies first and then
// holds against the limits here: a peer that breaks them loses its session and disturbs nobody else.
//
// Requests.  The client writes slot request_tail, then adds 1 to request_tail. If server_sleeps is not 0 then, it
// writes
//            the value 1 to the doorbell (the eventfd that came with the region). The server copies a message out and
//            adds 1 to request_head: from then on its slot may be written again.
// Answers.   Every forward request gets one answer, in the order of completion, a Cancel none of its own. The server
//            writes slot answer_tail and adds 1; if client_sleeps is not 0 then, it wakes the futex at answer_tail. The
//            client copies the message out and adds 1 to answer_head.
// Limits.    At most `slots` requests are unanswered or answered and not taken: the server takes no more. A client that
//            keeps to it is never kept waiting; one that does not has to ring again when it has taken answers.
// Sleeping.  Whoever goes to sleep says so first, looks once more, and only then sleeps. The counters and the two flags
//            are read and written sequentially consistent, so that one of the two sides always sees the other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

namespace expertd::lane {

inline constexpr std::uint32_t kRingMagic = 0x31676e72;  // "rng1"
inline constexpr std::size_t kCacheLine = 64;

struct RingHeader {
  // Written by the server before the region is handed out, for clients; the server goes by its own copy.
  std::uint32_t magic;
  std::uint32_t slots;       // a power of two
  std::uint32_t slot_bytes;  // a multiple of 64

  alignas(kCacheLine) std::atomic<std::uint32_t> request_tail;  // the client's
  alignas(kCacheLine) std::atomic<std::uint32_t> request_head;  // the server's
  std::atomic<std::uint32_t> server_sleeps;                     // the server's
  alignas(kCacheLine) std::atomic<std::uint32_t> answer_tail;   // the server's; a futex
  std::atomic<std::uint32_t> closed;                            // the server's: 1 when no answer will come any more
  alignas(kCacheLine) std::atomic<std::uint32_t> answer_head;   // the client's
  std::atomic<std::uint32_t> client_sleeps;                     // the client's
};
static_assert(sizeof(RingHeader) == 5 * kCacheLine && std::atomic<std::uint32_t>::is_always_lock_free);

inline constexpr std::size_t kSlotHeader = 8;

struct RingGeometry {
  std::uint32_t slots = 0;
  std::uint32_t slot_bytes = 0;

  constexpr std::size_t message_bytes() const { return slot_bytes - kSlotHeader; }  // the longest message
  constexpr std::size_t bytes() const { return sizeof(RingHeader) + std::size_t{2} * slots * slot_bytes; }
  constexpr std::size_t request_slot(std::uint32_t n) const {
    return sizeof(RingHeader) + std::size_t{n % slots} * slot_bytes;
  }
  constexpr std::size_t answer_slot(std::uint32_t n) const { return request_slot(n) + std::size_t{slots} * slot_bytes; }
};

// For whoever looks at a counter again and again.
inline void SpinPause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

inline constexpr std::uint32_t kMinSlots = 2, kMaxSlots = 256;
inline constexpr std::uint32_t kMinSlotBytes = 256, kMaxSlotBytes = 1 << 20;

}  // namespace expertd::lane
