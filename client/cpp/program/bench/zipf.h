// Zipf's law over ranks 0..n-1: rank r has weight 1 / (r + 1)^exponent.
#pragma once

#include <cstdint>
#include <random>
#include <vector>

namespace expertd::client {

// What a user may ask for.
inline constexpr double kMaxZipfExponent = 10;

// 1 / (r + 1)^exponent for r in [0, n).
std::vector<double> ZipfWeights(std::int64_t n, double exponent);

// Draws indices with probabilities proportional to fixed weights: a table of sums and a binary search.
class WeightedChoice {
 public:
  // weights: at least one, none negative, one positive.
  explicit WeightedChoice(const std::vector<double>& weights);
  std::int64_t operator()(std::mt19937_64& random) const;

 private:
  std::vector<double> sums_;
};

}  // namespace expertd::client
