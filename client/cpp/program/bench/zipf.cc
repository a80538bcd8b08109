#include "client/cpp/program/bench/zipf.h"

#include <algorithm>
#include <cmath>

namespace expertd::client {

std::vector<double> ZipfWeights(std::int64_t n, double exponent) {
  std::vector<double> weights;
  for (std::int64_t rank = 1; rank <= n; ++rank) weights.push_back(std::pow(static_cast<double>(rank), -exponent));
  return weights;
}

WeightedChoice::WeightedChoice(const std::vector<double>& weights) {
  double sum = 0;
  for (const double weight : weights) sums_.push_back(sum += weight);
}

std::int64_t WeightedChoice::operator()(std::mt19937_64& random) const {
  const double at = std::uniform_real_distribution<double>(0, sums_.back())(random);
  const auto found = std::upper_bound(sums_.begin(), sums_.end() - 1, at);  // rounding may reach the very end
  return found - sums_.begin();
}

}  // namespace expertd::client
