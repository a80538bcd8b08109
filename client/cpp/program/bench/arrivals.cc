#include "client/cpp/program/bench/arrivals.h"

#include <cmath>

namespace expertd::client {

Arrivals Arrivals::Constant(double per_second) { return {Kind::kConstant, kNanosPerSecond / per_second}; }

Arrivals Arrivals::Poisson(double per_second, std::uint64_t seed) {
  Arrivals arrivals(Kind::kPoisson, kNanosPerSecond / per_second);
  arrivals.random_.seed(seed);
  return arrivals;
}

Arrivals Arrivals::Recorded(const std::vector<Nanos>& at, double per_second) {
  const auto count = static_cast<double>(at.size());
  const auto length = static_cast<double>(at.back());
  // A trace of one moment has no gaps of its own: one a second, unless the caller says.
  const double recorded_gap = length > 0 ? length / std::max(1.0, count - 1) : kNanosPerSecond;
  const double gap = per_second > 0 ? kNanosPerSecond / per_second : recorded_gap;
  Arrivals arrivals(Kind::kRecorded, gap);
  for (const Nanos offset : at) arrivals.recorded_.push_back(static_cast<double>(offset) * gap / recorded_gap);
  return arrivals;
}

Nanos Arrivals::Next() {
  const std::int64_t index = index_++;
  switch (kind_) {
    case Kind::kConstant:
      return std::llround(static_cast<double>(index) * gap_);
    case Kind::kPoisson:
      at_ += std::exponential_distribution<double>(1 / gap_)(random_);
      return std::llround(at_);
    case Kind::kRecorded:
      break;
  }
  const auto size = static_cast<std::int64_t>(recorded_.size());
  const double round = static_cast<double>(index / size) * (recorded_.back() + gap_);
  return std::llround(round + recorded_[static_cast<std::size_t>(index % size)]);
}

}  // namespace expertd::client
