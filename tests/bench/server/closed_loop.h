// Callers that send their next request when the last is answered, and what became of their time.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/histogram.h"
#include "client/cpp/stream.h"
#include "kernels/base/mutex.h"

namespace expertd::bench {

// As the answers name them.
struct Stage {
  const char* name;
  float (v1::StageMicros::*micros)() const;
};
inline constexpr Stage kStages[] = {{"decode", &v1::StageMicros::decode},      {"queue", &v1::StageMicros::queue},
                                    {"stage in", &v1::StageMicros::stage_in},  {"route", &v1::StageMicros::route},
                                    {"gemm", &v1::StageMicros::gemm},          {"combine", &v1::StageMicros::combine},
                                    {"stage out", &v1::StageMicros::stage_out}};

struct Closed {
  double rows_per_second = 0;
  client::Histogram latency;  // nanoseconds
  client::Histogram beside;   // of that, what was not the layer's compute
  std::vector<client::Histogram> stages{std::size(kStages)};
  std::map<std::int64_t, std::int64_t> batches;  // requests by the rows of their batch
};

inline double Us(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-3; }

// "decode 1.0, queue 2.0, ...": the p50 of each stage in microseconds.
std::string StagesOf(const Closed& closed);

// Each caller has a stream of its own.
class ClosedLoop {
 public:
  ClosedLoop(const client::Client& client, const client::Request& request, int callers);

  // Counts what is answered in `window`, after a fifth of it to warm up. Once.
  absl::StatusOr<Closed> Run(std::chrono::milliseconds window);

 private:
  using Clock = std::chrono::steady_clock;
  void Send(client::Stream& stream);
  // Whether to go on.
  bool Take(const absl::StatusOr<client::Answer>& answer, Clock::time_point sent);

  const client::Request& request_;
  std::vector<std::unique_ptr<client::Stream>> streams_;
  Clock::time_point begin_, end_;
  Mutex mutex_;
  CondVar all_;
  std::ptrdiff_t open_ ABSL_GUARDED_BY(mutex_) = 0;
  absl::Status failure_ ABSL_GUARDED_BY(mutex_);
  Closed result_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd::bench
