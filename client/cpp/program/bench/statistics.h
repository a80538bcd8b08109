// What repeated windows say together.
#pragma once

#include <vector>

namespace expertd::client {

// Mean, and half the width of its 95 % confidence interval by Student's t: the truth is within mean +- half_width with
// that confidence if the windows are independent. NaN when there are fewer than two values.
struct Estimate {
  double mean = 0;
  double half_width = 0;
};

Estimate EstimateOf(const std::vector<double>& values);

}  // namespace expertd::client
