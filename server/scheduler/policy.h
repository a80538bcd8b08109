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

// Requests whose deadline is not after `now` are dropped, wherever they wait. Of the layers whose window is over (or
// whose waiting rows fill a batch), the one with the most urgent band is served, among equals the one whose most urgent
// request has waited longest: a flood on one layer delays another by what came before, never by what comes after. The
// batch takes that layer's requests in order up to max_rows; the last one is cut where the batch is full, and what is
// left of it keeps its place.
BatchDecision Decide(const LayerQueues& queues, const BatchLimits& limits, Waiting::TimePoint now);

}  // namespace expertd
