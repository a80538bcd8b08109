#include "kernels/cpu/worker_pool.h"

#include <algorithm>

namespace expertd::cpu {
namespace {

constexpr int kSpins = 2000;  // some 20 to 50 us
constexpr std::uint64_t kUnits = 0xffffffffu;

void Pause() { __builtin_ia32_pause(); }

// Guided self-scheduling (Polychronopoulos and Kuck 1987): a share of what is left, so that the threads end together.
std::int64_t ShareOf(std::int64_t left, std::int64_t grain, std::int64_t threads) {
  return std::min(left, std::max(grain, left / (3 * threads)));
}

}  // namespace

WorkerPool::WorkerPool(int threads) {
  workers_.reserve(threads - 1);
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this] { WorkerLoop(); });
}

WorkerPool::~WorkerPool() {
  stopping_.store(true, std::memory_order_relaxed);
  ticket_.fetch_add(kUnits + 1);  // the next call's number, with no units
  ticket_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void WorkerPool::ParallelFor(std::int64_t count, std::int64_t grain, Work work) {
  if (count <= 0) return;
  if (count <= grain || workers_.empty()) return work(0, count);

  job_ = {.count = count, .grain = grain, .work = &work};
  unfinished_.store(count, std::memory_order_relaxed);
  ticket_.store((ticket_.load(std::memory_order_relaxed) | kUnits) + 1 + static_cast<std::uint64_t>(count));
  ticket_.notify_all();
  Drain();
  for (int spin = 0;; ++spin) {
    const std::int64_t left = unfinished_.load(std::memory_order_acquire);
    if (left == 0) return;
    spin < kSpins ? Pause() : unfinished_.wait(left);
  }
}

std::uint64_t WorkerPool::Drain() {
  for (;;) {
    std::uint64_t ticket = ticket_.load(std::memory_order_acquire);
    const auto left = static_cast<std::int64_t>(ticket & kUnits);
    if (left == 0) return ticket;
    // A first claim that may be too short or long for the job is corrected below: job_ may be read only once claimed.
    if (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel)) continue;
    std::int64_t begin = job_.count - left;
    std::int64_t end = begin + 1;
    std::uint64_t now = ticket - 1;
    const std::int64_t more = ShareOf(left, job_.grain, threads()) - 1;
    if (more > 0 && ticket_.compare_exchange_strong(now, now - static_cast<std::uint64_t>(more))) end += more;
    (*job_.work)(begin, end);
    if (unfinished_.fetch_sub(end - begin, std::memory_order_acq_rel) == end - begin) unfinished_.notify_one();
  }
}

void WorkerPool::WorkerLoop() {
  std::uint64_t seen = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    for (int spin = 0; spin < kSpins && ticket_.load(std::memory_order_relaxed) == seen; ++spin) Pause();
    ticket_.wait(seen, std::memory_order_acquire);
    seen = Drain();
  }
}

}  // namespace expertd::cpu
