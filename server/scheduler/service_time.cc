#include "server/scheduler/service_time.h"

#include <algorithm>

namespace expertd {
namespace {

constexpr double kForget = 0.95;  // an observation's weight halves every 14 batches

// Below this relative variance of the batch sizes the slope would be fitted to noise.
constexpr double kMinVariance = 1e-3;

}  // namespace

void ServiceTime::Observe(std::int64_t rows, double seconds) {
  const double x = static_cast<double>(rows);
  const double y = std::max(0.0, seconds);
  w_ = kForget * w_ + 1;
  x_ = kForget * x_ + x;
  y_ = kForget * y_ + y;
  xx_ = kForget * xx_ + x * x;
  xy_ = kForget * xy_ + x * y;
}

double ServiceTime::Expect(const Backlog& backlog) const {
  if (w_ == 0 || backlog.batches <= 0) return 0;
  const double mean_x = x_ / w_, mean_y = y_ / w_;
  const double variance = xx_ / w_ - mean_x * mean_x;
  const double covariance = xy_ / w_ - mean_x * mean_y;
  double per_row = variance > kMinVariance * mean_x * mean_x ? std::max(0.0, covariance / variance) : 0;
  // A line that would start below zero goes through it: neither term may pay the caller back.
  if (mean_x > 0) per_row = std::min(per_row, mean_y / mean_x);
  const double per_batch = mean_y - per_row * mean_x;
  return per_batch * static_cast<double>(backlog.batches) + per_row * static_cast<double>(backlog.rows);
}

double ServiceTime::RowSeconds(std::int64_t rows) const {
  const double seconds = Expect({.batches = 1, .rows = rows});
  return seconds > 0 && rows > 0 ? seconds / static_cast<double>(rows) : 1e-6;
}

}  // namespace expertd
