// A closed loop of raw messages, which does not care what a server answers with: the same client work against an echo
// and against expertd.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/support/byte_buffer.h>

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "client/cpp/messages.h"
#include "client/cpp/program/bench/histogram.h"

namespace expertd::bench {

struct RawLoad {
  bool stream = true;
  int in_flight = 1;  // on each channel
  std::chrono::milliseconds warmup{100};
  std::chrono::milliseconds window{500};
  // May look at each answer inside the window, after its time was taken; under the loop's lock.
  std::function<void(std::chrono::nanoseconds latency, grpc::ByteBuffer& answer)> look;
};

struct RawResult {
  double requests_per_second = 0;
  client::Histogram latency;  // of answers inside the window, nanoseconds
};

// Sends `request` under fresh ids, one stream a channel. An error when a call fails or an answer is smaller than the
// rows.
absl::StatusOr<RawResult> RunRaw(const std::vector<std::shared_ptr<grpc::Channel>>& channels,
                                 const client::Request& request, const RawLoad& load);

}  // namespace expertd::bench
