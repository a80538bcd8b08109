// A histogram of durations with logarithmic buckets, as HdrHistogram has them: constant memory (76 KiB), any number of
// samples, and percentiles that are at most 1/256 above the exact ones.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>

namespace expertd::client {

class Histogram {
 public:
  void Add(std::int64_t nanoseconds) {
    const auto value = static_cast<std::uint64_t>(std::clamp(nanoseconds, std::int64_t{0}, kLimit - 1));
    ++buckets_[Index(value)];
    ++count_;
    sum_ += static_cast<double>(value);
    max_ = std::max(max_, value);
  }

  void Merge(const Histogram& other) {
    for (std::size_t i = 0; i < buckets_.size(); ++i) buckets_[i] += other.buckets_[i];
    count_ += other.count_;
    sum_ += other.sum_;
    max_ = std::max(max_, other.max_);
  }

  std::int64_t count() const { return count_; }
  std::int64_t max() const { return static_cast<std::int64_t>(max_); }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }

  // Calls visit(largest value of the bucket, samples in it) for each bucket that has any, in increasing order.
  template <class Visit>
  void ForEachBucket(Visit visit) const {
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      if (buckets_[i] > 0) visit(static_cast<std::int64_t>(std::min(Last(i), max_)), buckets_[i]);
    }
  }

  // The smallest bucket bound that at least `fraction` (0..1] of the samples do not pass; 0 when there are none.
  std::int64_t Percentile(double fraction) const {
    const double wanted = fraction * static_cast<double>(count_);
    std::int64_t seen = 0;
    for (std::size_t i = 0; i < buckets_.size(); ++i) {
      seen += buckets_[i];
      if (seen > 0 && static_cast<double>(seen) >= wanted) return static_cast<std::int64_t>(std::min(Last(i), max_));
    }
    return 0;
  }

 private:
  static constexpr int kSubBits = 8;  // buckets an octave: 2^kSubBits
  static constexpr int kOctaves = 34;
  static constexpr std::int64_t kLimit = std::int64_t{1} << (kSubBits + kOctaves);  // over an hour

  // Values below 2^kSubBits have a bucket each; above, the leading kSubBits + 1 bits choose.
  static std::size_t Index(std::uint64_t value) {
    const int shift = std::max(0, static_cast<int>(std::bit_width(value)) - kSubBits - 1);
    return (static_cast<std::size_t>(shift) << kSubBits) + (value >> shift);
  }
  // The largest value of a bucket.
  static std::uint64_t Last(std::size_t index) {
    const std::size_t shift = index < (2u << kSubBits) ? 0 : (index >> kSubBits) - 1;
    return ((static_cast<std::uint64_t>(index - (shift << kSubBits)) + 1) << shift) - 1;
  }

  std::array<std::int64_t, (kOctaves + 1) << kSubBits> buckets_{};
  std::int64_t count_ = 0;
  double sum_ = 0;
  std::uint64_t max_ = 0;
};

}  // namespace expertd::client
