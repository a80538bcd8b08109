#include "client/cpp/program/bench/statistics.h"

#include <array>
#include <cmath>
#include <limits>
#include <numeric>

namespace expertd::client {
namespace {

// Two-sided 95 % quantiles of Student's distribution with 1, 2, ... degrees of freedom; the normal one beyond.
constexpr std::array<double, 30> kStudent = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
                                             2.201,  2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
                                             2.080,  2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042};
constexpr double kNormal = 1.960;

}  // namespace

Estimate EstimateOf(const std::vector<double>& values) {
  const auto count = static_cast<double>(values.size());
  Estimate estimate{.half_width = std::numeric_limits<double>::quiet_NaN()};
  if (values.empty()) return estimate;
  estimate.mean = std::accumulate(values.begin(), values.end(), 0.0) / count;
  if (values.size() < 2) return estimate;
  double squares = 0;
  for (const double value : values) squares += (value - estimate.mean) * (value - estimate.mean);
  const std::size_t freedom = values.size() - 1;
  const double t = freedom <= kStudent.size() ? kStudent[freedom - 1] : kNormal;
  estimate.half_width = t * std::sqrt(squares / static_cast<double>(freedom) / count);
  return estimate;
}

}  // namespace expertd::client
