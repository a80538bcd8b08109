// What the benchmarks of the service share.
#pragma once

#include <grpcpp/channel.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace expertd::bench {

using Channels = std::vector<std::shared_ptr<grpc::Channel>>;

// Linear between the values beside it; `values` is not empty.
double Quantile(std::vector<double> values, double fraction);

// Connections of their own, plaintext, without retries and limits.
Channels Connect(const std::string& address, int connections);

// Calls `run` with a folder that holds one small OLMoE-shaped layer (hidden size 2048), made by `<bin_dir>/expertd
// synth` and removed afterwards. Says on stderr what went wrong, and returns the program's exit code.
int RunOnTinyCheckpoint(const char* program, const std::string& bin_dir,
                        const std::function<absl::Status(const std::string& checkpoint)>& run);

}  // namespace expertd::bench
