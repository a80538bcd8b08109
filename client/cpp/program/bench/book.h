// Which operation runs when: the load tester without threads, sockets or a clock, so that it can be simulated.
//
// An operation is what a caller waits for: one request, or a decode step, which is one request for each layer in the
// model's order, each sent when the one before it was answered. Slots carry operations; an operation keeps its slot
// until it is finished. Times are nanoseconds since the start of the run.
#pragma once

#include <deque>
#include <functional>
#include <limits>
#include <optional>
#include <queue>
#include <vector>

#include "client/cpp/program/bench/arrivals.h"

namespace expertd::client {

inline constexpr Nanos kNever = std::numeric_limits<Nanos>::max();

struct Operation {
  std::int64_t index = 0;  // in order of schedule
  Nanos scheduled = 0;     // closed loop: when it was sent
  Nanos started = 0;       // when its first request was sent
  Nanos sent = 0;          // when its current request was sent
  Nanos finished = 0;
  int call = 0;            // index of its current request
  bool held_back = false;  // it waited for a slot: every one was taken when it was due
};

class Book {
 public:
  struct Plan {
    int slots = 1;           // operations in progress at most
    int calls = 1;           // requests of an operation
    Nanos end = kNever;      // nothing is scheduled from here on
    Nanos timeout = kNever;  // open loop: an operation that has waited for a slot as long as this is given up
  };

  // Closed loop: every slot starts its next operation when it has finished one.
  explicit Book(const Plan& plan);
  // Open loop: operations start as scheduled, or as soon as a slot is free.
  Book(const Plan& plan, Arrivals arrivals);

  // When the next operation is due. kNever: only an answer can change anything.
  Nanos NextDue() const;
  // Starts an operation that is due, if there is one and a slot for it; the slot.
  std::optional<int> Start(Nanos now);
  // Open loop: an operation that is too late to be sent at all, if there is one.
  std::optional<Operation> GiveUp(Nanos now);

  // The slot's current request was answered. True: the operation goes on with its next request, which is sent now.
  // False: it is finished; the slot is free at `free_at` (>= now).
  bool Answered(int slot, bool ok, Nanos now, Nanos free_at);

  // Nothing starts any more, not even what waits.
  void Stop();

  // No operation starts any more. What is in progress may still be.
  bool Over(Nanos now) const { return stopped_ || (now >= plan_.end && waiting_.empty()); }
  int in_progress() const { return in_progress_; }

  const Operation& operation(int slot) const { return slots_[static_cast<std::size_t>(slot)]; }

 private:
  struct Ready {  // a free slot of the closed loop
    Nanos at;
    int slot;
    bool operator>(const Ready& other) const { return at > other.at; }
  };

  void TakeArrivals(Nanos now);
  int Begin(int slot, Nanos scheduled, Nanos now);

  Plan plan_;
  std::optional<Arrivals> arrivals_;
  Nanos next_arrival_ = kNever;
  std::deque<Nanos> waiting_;  // open loop: due, without a slot; times of schedule
  std::vector<Operation> slots_;
  std::vector<int> free_;                                                      // open loop
  std::priority_queue<Ready, std::vector<Ready>, std::greater<Ready>> ready_;  // closed loop
  Nanos freed_at_ = std::numeric_limits<Nanos>::min();                         // when it last stopped being full
  std::int64_t next_index_ = 0;
  int in_progress_ = 0;
  bool stopped_ = false;
};

}  // namespace expertd::client
