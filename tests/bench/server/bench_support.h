// What the benchmarks of the service share.
#pragma once

#include <grpcpp/channel.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace expertd::bench {

using Channels = std::vector<std::shared_ptr<grpc::Channel>>;

// Linear between the values beside it; `values` is not empty.
double Quantile(std::vector<double> values, double fraction);

// Connections of their own, plaintext, without retries and limits.
Channels Connect(const std::string& address, int connections);

// A folder with one small OLMoE-shaped layer (hidden size 2048), made by `<bin_dir>/expertd synth`; the caller's to
// remove.
absl::StatusOr<std::string> TinyCheckpoint(const std::string& bin_dir);

}  // namespace expertd::bench
