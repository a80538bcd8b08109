// How many rows each request has.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "client/cpp/program/bench/zipf.h"

namespace expertd::client {

// The flag's text: "16" (all equal), "uniform:1..64", "zipf:1..512:1.1" (low + Zipf's rank; the exponent may be left
// out: 1) or "trace:FILE" (as recorded, in order, over and over).
class RowCounts {
 public:
  // InvalidArgument naming the text and what is wrong with it, or the file's error.
  static absl::StatusOr<RowCounts> Parse(absl::string_view text);

  // Every count is in [least(), most()].
  std::int64_t least() const { return least_; }
  std::int64_t most() const { return most_; }
  const std::string& text() const { return text_; }

  // Of request `index` of the run.
  std::int64_t Rows(std::int64_t index, std::mt19937_64& random) const;

 private:
  std::string text_;
  std::int64_t least_ = 1, most_ = 1;
  std::vector<WeightedChoice> choice_;  // Zipf: one; least_ + its index
  std::vector<std::int64_t> recorded_;  // trace
};

}  // namespace expertd::client
