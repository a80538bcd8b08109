// A few threads that share out numbered units of work, woken for each call and kept between calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include "absl/functional/function_ref.h"

namespace expertd::cpu {

// One ParallelFor at a time; the calling thread works too, so a pool of 1 has no thread of its own. Workers spin for a
// few tens of microseconds after a call (the stages of a batch follow each other closely) and then sleep.
class WorkerPool {
 public:
  // `threads` >= 1 counts the caller.
  explicit WorkerPool(int threads);
  ~WorkerPool();
  WorkerPool(const WorkerPool&) = delete;
  WorkerPool& operator=(const WorkerPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(begin, end) for disjoint ranges that cover [0, count), from several threads, and returns when all are
  // done. Ranges are long at first and short at the end, at least `grain` (>= 1) units but for the last. `work` must
  // not throw and must not use the pool. count < 2^31.
  using Work = absl::FunctionRef<void(std::int64_t begin, std::int64_t end)>;
  void ParallelFor(std::int64_t count, std::int64_t grain, Work work);

 private:
  // All of a call that workers may read after they have claimed some of its units, and only then: until those units are
  // done, ParallelFor does not return.
  struct Job {
    std::int64_t count = 0;
    std::int64_t grain = 1;
    const Work* work = nullptr;
  };

  void WorkerLoop();
  // Works until no units are left to claim; returns the ticket that it last saw.
  std::uint64_t Drain();

  // Set by ParallelFor between two calls, published by ticket_.
  Job job_;

  // Self-synchronised. The ticket is (number of the call) << 32 | units not yet claimed: a claim is one exchange, and
  // fails when the call is over, however late its thread is.
  std::atomic<std::uint64_t> ticket_{0};
  std::atomic<std::int64_t> unfinished_{0};
  std::atomic<bool> stopping_{false};

  // Set at construction.
  std::vector<std::thread> workers_;
};

}  // namespace expertd::cpu
