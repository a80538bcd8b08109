// How long the engine takes for a batch, learnt from the batches it ran.
#pragma once

#include <cstdint>

namespace expertd {

// So many batches with so many rows between them.
struct Backlog {
  std::int64_t batches = 0;
  std::int64_t rows = 0;
};

// seconds(batch) = per_batch + per_row * rows, fitted by least squares over exponentially forgotten observations. Two
// terms, because a batch costs what its weights cost to read, however few its rows are: an average per row, learnt
// while traffic was light, would refuse the first burst that follows. While all batches were of one size the rows are
// taken to be free, so the estimate errs towards accepting. Not synchronised.
class ServiceTime {
 public:
  void Observe(std::int64_t rows, double seconds);
  bool empty() const { return w_ == 0; }
  // Seconds that `backlog` takes; 0 until something was observed.
  double Expect(const Backlog& backlog) const;
  // What each row of a batch of `rows` (> 0) costs, > 0; a microsecond while nothing was observed, so that rows count.
  double RowSeconds(std::int64_t rows) const;

 private:
  // Weighted sums over the observations (x: rows, y: seconds).
  double w_ = 0, x_ = 0, y_ = 0, xx_ = 0, xy_ = 0;
};

}  // namespace expertd
