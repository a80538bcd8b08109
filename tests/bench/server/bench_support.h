// What the benchmarks of the service share.
#pragma once

#include <grpcpp/channel.h>
#include <grpcpp/security/credentials.h>

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace expertd::bench {

using Channels = std::vector<std::shared_ptr<grpc::Channel>>;

// Linear between the values beside it; `values` is not empty.
double Quantile(std::vector<double> values, double fraction);

// Connections of their own, without retries and limits; plaintext without credentials.
Channels Connect(const std::string& address, int connections,
                 std::shared_ptr<grpc::ChannelCredentials> credentials = nullptr);

// Calls `run` with a folder that holds one layer, made by `<bin_dir>/expertd synth <shape>` and removed afterwards.
// Says on stderr what went wrong, and returns the program's exit code.
int RunOnSynth(const char* program, const std::string& bin_dir, const std::vector<std::string>& shape,
               const std::function<absl::Status(const std::string& checkpoint)>& run);
// On a small OLMoE-shaped layer (hidden size 2048).
int RunOnTinyCheckpoint(const char* program, const std::string& bin_dir,
                        const std::function<absl::Status(const std::string& checkpoint)>& run);

}  // namespace expertd::bench
