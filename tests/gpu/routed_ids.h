// The routing that tests and benchmarks use, the same in any language: row n goes to the K experts e with the smallest
// splitmix64(2^32 * n + e) of seed 0, listed in that order. With skew s > 0 the key, read as a uniform u in (0, 1),
// becomes -log(u) * (e + 1)^s, which draws experts with Zipf(s) weights, without replacement.
#pragma once

#include <cstdint>
#include <vector>

namespace expertd::testing {

// [rows, k]; k <= experts.
std::vector<std::int32_t> RoutedIds(std::int64_t rows, std::int64_t experts, std::int64_t k, double skew = 0.0);

// Experts that at least one id names.
std::int64_t ExpertsHit(const std::vector<std::int32_t>& ids);

}  // namespace expertd::testing
