// When the requests of an open loop are due, whatever the server does.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

#include "client/cpp/program/bench/trace_file.h"

namespace expertd::client {

// An endless schedule of offsets from the start of the run that never decrease.
class Arrivals {
 public:
  // One every 1 / per_second, the first at 0; without drift. per_second > 0.
  static Arrivals Constant(double per_second);
  // Independent, exponentially distributed gaps.
  static Arrivals Poisson(double per_second, std::uint64_t seed);
  // As recorded, over and over; the gap between two rounds is the mean gap. per_second > 0: stretched so that this many
  // come on average. `at`: see Trace; at least one.
  static Arrivals Recorded(const std::vector<Nanos>& at, double per_second);

  Nanos Next();

 private:
  enum class Kind { kConstant, kPoisson, kRecorded };
  Arrivals(Kind kind, double gap) : kind_(kind), gap_(gap) {}

  Kind kind_;
  double gap_;  // mean, nanoseconds
  std::int64_t index_ = 0;
  double at_ = 0;           // Poisson
  std::mt19937_64 random_;  // Poisson
  std::vector<double> recorded_;
};

}  // namespace expertd::client
