// Puts a load on a server and measures it: the threads, streams and clock around Book (what runs when) and Meter (what
// is counted).
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/meter.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/bench/row_counts.h"
#include "client/cpp/program/bench/saturation.h"

namespace expertd::client {

enum class Mode { kUnary, kStream };
enum class ArrivalKind { kPoisson, kConstant, kTrace };

struct LoadOptions {
  Mode mode = Mode::kStream;
  int concurrency = 8;  // closed loop: operations in progress over all connections
  double rate = 0;      // > 0: open loop of this many operations a second
  ArrivalKind arrivals = ArrivalKind::kPoisson;
  Trace trace;            // with kTrace
  int max_in_flight = 0;  // open loop: operations in progress at most; 0: as many as the server takes on our streams
  RowCounts rows;         // of an operation
  std::chrono::milliseconds warmup{2000};
  std::chrono::milliseconds duration{10000};  // of each window
  int windows = 1;
  std::int64_t requests = 0;                 // closed loop, > 0: one window of that many operations
  std::chrono::milliseconds timeout{30000};  // of each operation, from its schedule on
  std::uint64_t seed = 1;
  int samples = 0;  // answers to keep for checking

  // A trace comes at its own rate, unless `rate` says another.
  bool open_loop() const { return rate > 0 || arrivals == ArrivalKind::kTrace; }
};

struct Sample {
  Request request;
  Answer answer;
};

struct LoadResult {
  Window total;  // all windows together
  std::vector<Window> windows;
  Counts counts;
  OwnUse own;                   // of this process, over the windows
  absl::Status broken;          // not ok: a stream was ended before the last window was over
  std::vector<Sample> samples;  // chosen evenly from all windows
};

// Shown about every 50 ms: how much of the run is over (0..1), and a few words.
using ShowProgress = std::function<void(double fraction, const std::string& text)>;

// InvalidArgument when the server does not take such a load, naming option, value and limit.
absl::Status CheckLoad(const v1::GetServerInfoResponse& server, const LoadOptions& options);

// Blocks for warm-up, windows and the last answers. Each operation goes through all `layers`, in order, with rows of
// `payloads` (which was made for them). After a refusal a slot of a closed loop pauses for as long as the server says;
// an open loop goes on as scheduled. Errors of operations are part of the result.
LoadResult RunLoad(const Client& client, const Payloads& payloads, std::size_t layers, const LoadOptions& options,
                   const ShowProgress& show);

}  // namespace expertd::client
