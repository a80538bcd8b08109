#include "tests/gpu/routed_ids.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

namespace expertd::testing {
namespace {

std::uint64_t SplitMix64(std::uint64_t x) {
  std::uint64_t z = x + 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

template <typename Key>
void AppendSmallest(const std::vector<Key>& keys, std::int64_t k, std::vector<std::int32_t>& ids) {
  std::vector<std::int32_t> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::partial_sort(order.begin(), order.begin() + k, order.end(),
                    [&](auto a, auto b) { return keys[a] != keys[b] ? keys[a] < keys[b] : a < b; });
  ids.insert(ids.end(), order.begin(), order.begin() + k);
}

}  // namespace

std::vector<std::int32_t> RoutedIds(std::int64_t rows, std::int64_t experts, std::int64_t k, double skew) {
  std::vector<std::int32_t> ids;
  std::vector<std::uint64_t> keys(static_cast<std::size_t>(experts));
  std::vector<double> skewed(keys.size());
  for (std::int64_t n = 0; n < rows; ++n) {
    for (std::int64_t e = 0; e < experts; ++e) keys[e] = SplitMix64((static_cast<std::uint64_t>(n) << 32) + e);
    if (skew == 0.0) {
      AppendSmallest(keys, k, ids);
      continue;
    }
    for (std::int64_t e = 0; e < experts; ++e) {
      const double u = (static_cast<double>(keys[e] >> 11) + 0.5) * 0x1p-53;
      skewed[e] = -std::log(u) * std::pow(static_cast<double>(e) + 1.0, skew);
    }
    AppendSmallest(skewed, k, ids);
  }
  return ids;
}

std::int64_t ExpertsHit(const std::vector<std::int32_t>& ids) {
  std::set<std::int32_t> hit(ids.begin(), ids.end());
  hit.erase(-1);
  return static_cast<std::int64_t>(hit.size());
}

}  // namespace expertd::testing
