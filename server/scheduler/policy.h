// What to do next, as a pure function of what waits: no threads, no clock, no engine.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <vector>

#include "server/scheduler/layer_queue.h"

namespace expertd {

struct BatchLimits {
  std::int64_t max_rows = 4096;         // of one batch, > 0
  std::chrono::microseconds window{0};  // how long a request may be kept waiting for company
  // What waits at one priority of one tenant gains a class for every step in which none of it was served. > 0.
  std::chrono::microseconds ageing_step{500'000};
  double row_seconds = 1e-6;  // what a row of a full batch costs, > 0: how fast shares are used up while it is filled
};

// The next `rows` rows of a request.
struct Pick {
  Waiting* request = nullptr;
  std::int64_t rows = 0;
};

struct BatchDecision {
  std::vector<Waiting*> expired;  // of all layers: drop these
  std::vector<Pick> batch;        // run these, all of one layer, most urgent first; empty: run nothing now
  // When the batch is empty and something waits: look again then, at the latest.
  std::optional<Waiting::TimePoint> look_again;
};

// A lane's priority and what ageing adds to it: the higher, the more urgent.
std::int64_t ClassOf(const LayerQueue::Lanes::value_type& lane, std::chrono::microseconds ageing_step,
                     Waiting::TimePoint now);

// Requests whose deadline is not after `now` are dropped, wherever they wait. The others are served in the order of
//   class (priority, and what ageing adds to it)  >  least virtual time of the tenant  >  earliest deadline  > arrival.
// The most urgent of the layers whose window is over (or whose waiting rows fill a batch) decides the layer; between
// layers arrival stands before the deadline: a flood on one delays another by what came before, never by what comes
// after. The batch takes that layer's requests up to max_rows, each as if those before it had been charged already; the
// last one is cut where the batch is full, and what is left of it keeps its place.
BatchDecision Decide(const LayerQueues& queues, const BatchLimits& limits, Waiting::TimePoint now);

}  // namespace expertd
