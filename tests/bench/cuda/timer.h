// Times what is enqueued on a stream: captured as a graph, replayed 20 times, each after a 256 MiB memset that evicts
// the L2; the median, in microseconds.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "tests/gpu/device.h"

namespace expertd::bench {

// One line of the table. Rates count each input byte read once, each output byte written once.
struct Cell {
  std::string op, shape;
  std::int64_t rows = 0;
  double microseconds = 0;
  double bytes = 0, flops = 0;
  double roof = 0;  // microseconds that bytes and flops take at the measured ceilings; 0: the longer of both
};

class Timer {
 public:
  using Enqueue = std::function<absl::Status(cuda::Stream)>;

  Timer();
  // Aborts, naming the op, when it fails.
  double Microseconds(const Enqueue& enqueue, const Enqueue& prepare = {});

  // Prints a cell as a line and keeps it for WriteJson. `bandwidth` in bytes per second.
  // What `prepare` enqueues, before each time, is not counted.
  void Report(Cell cell, double bandwidth, const Enqueue& enqueue, const Enqueue& prepare = {});
  bool WriteJson(const std::string& path) const;

 private:
  testing::DeviceStream stream_;
  testing::DeviceArray<std::byte> flush_;
  std::vector<Cell> cells_;
};

// Ceilings of one H200, measured with random data: reads, a copy counting both ways, bf16 products.
inline constexpr double kReadBandwidth = 4.72e12, kCopyBandwidth = 4.30e12, kBf16Rate = 796e12;

// `bytes` of random bf16 numbers of about this size: one block of them, repeated.
testing::DeviceArray<std::byte> RandomBf16(std::int64_t bytes, float scale);
// One for each slot, from 0 to 1.
testing::DeviceArray<float> RandomRoutingWeights(std::int64_t slots);

}  // namespace expertd::bench
