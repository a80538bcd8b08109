#include "client/cpp/program/bench/row_counts.h"

#include <algorithm>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "client/cpp/program/bench/trace_file.h"

namespace expertd::client {
namespace {

constexpr std::int64_t kMostRows = 1 << 20;  // a table of Zipf's weights has as many entries

absl::Status Wrong(absl::string_view text, absl::string_view reason) {
  return absl::InvalidArgumentError(absl::StrCat("rows: ", text, ": ", reason));
}

// "1..64"
bool ParseRange(absl::string_view text, std::int64_t& least, std::int64_t& most) {
  const std::vector<absl::string_view> ends = absl::StrSplit(text, absl::ByString(".."));
  return ends.size() == 2 && absl::SimpleAtoi(ends[0], &least) && absl::SimpleAtoi(ends[1], &most) && least >= 1 &&
         least <= most && most <= kMostRows;
}

}  // namespace

absl::StatusOr<RowCounts> RowCounts::Parse(absl::string_view text) {
  RowCounts counts;
  counts.text_ = std::string(text);
  absl::string_view rest = text;
  if (absl::ConsumePrefix(&rest, "trace:")) {
    auto trace = ReadTrace(std::string(rest));
    if (!trace.ok()) return trace.status();
    counts.recorded_ = std::move(trace->rows);
    const auto [least, most] = std::minmax_element(counts.recorded_.begin(), counts.recorded_.end());
    counts.least_ = *least;
    counts.most_ = *most;
    return counts;
  }
  const std::string range = absl::StrCat(" is not low..high with 1 <= low <= high <= ", kMostRows);
  if (absl::ConsumePrefix(&rest, "uniform:")) {
    if (!ParseRange(rest, counts.least_, counts.most_)) return Wrong(text, absl::StrCat(rest, range));
    return counts;
  }
  if (absl::ConsumePrefix(&rest, "zipf:")) {
    const std::vector<absl::string_view> parts = absl::StrSplit(rest, absl::MaxSplits(':', 1));
    double exponent = 1;
    if (!ParseRange(parts[0], counts.least_, counts.most_)) return Wrong(text, absl::StrCat(parts[0], range));
    if (parts.size() == 2 &&
        (!absl::SimpleAtod(parts[1], &exponent) || !(exponent >= 0 && exponent <= kMaxZipfExponent))) {
      return Wrong(text, absl::StrCat("exponent ", parts[1], " is not in 0..", kMaxZipfExponent));
    }
    counts.choice_.emplace_back(ZipfWeights(counts.most_ - counts.least_ + 1, exponent));
    return counts;
  }
  if (!absl::SimpleAtoi(text, &counts.least_) || counts.least_ < 1) {
    return Wrong(text, "neither a number of at least 1 nor uniform:LOW..HIGH, zipf:LOW..HIGH[:EXPONENT] or trace:FILE");
  }
  counts.most_ = counts.least_;
  return counts;
}

std::int64_t RowCounts::Rows(std::int64_t index, std::mt19937_64& random) const {
  if (!recorded_.empty()) return recorded_[static_cast<std::size_t>(index) % recorded_.size()];
  if (!choice_.empty()) return least_ + choice_[0](random);
  return std::uniform_int_distribution<std::int64_t>(least_, most_)(random);
}

}  // namespace expertd::client
