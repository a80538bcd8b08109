// Independent pieces of work on every core.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace expertd::reference {

// work(i) for i in [0, count), each once, in no order. Waits for all.
template <class Work>
void ParallelFor(std::int64_t count, const Work& work) {
  std::atomic<std::int64_t> next = 0;
  const auto run = [&] {
    for (std::int64_t i = next++; i < count; i = next++) work(i);
  };
  const std::int64_t cores = std::max<std::int64_t>(1, std::thread::hardware_concurrency());
  std::vector<std::thread> others;
  for (std::int64_t t = 1; t < std::min(cores, count); ++t) others.emplace_back(run);
  run();
  for (std::thread& other : others) other.join();
}

}  // namespace expertd::reference
