#include "tests/bench/server/bench_support.h"

#include <grpc/grpc.h>
#include <grpcpp/create_channel.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <filesystem>

#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "tests/integration/process.h"

namespace expertd::bench {
namespace {

absl::StatusOr<std::string> Synthesise(const std::string& bin_dir, const std::vector<std::string>& shape) {
  const std::string dir = absl::StrCat(std::filesystem::temp_directory_path().string(), "/expertd_bench.", getpid());
  std::vector<std::string> command = {bin_dir + "/expertd", "synth", "--layers", "1", "--out", dir};
  command.insert(command.end(), shape.begin(), shape.end());
  auto synth = testing::Process::Start(command);
  if (!synth.ok()) return synth.status();
  const auto code = (*synth)->Wait(std::chrono::minutes(5));
  if (code != 0) return absl::InternalError(absl::StrCat("expertd synth failed: ", (*synth)->err()));
  return dir;
}

}  // namespace

double Quantile(std::vector<double> values, double fraction) {
  std::sort(values.begin(), values.end());
  const double at = fraction * static_cast<double>(values.size() - 1);
  const auto low = static_cast<std::size_t>(at);
  const std::size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

Channels Connect(const std::string& address, int connections, std::shared_ptr<grpc::ChannelCredentials> credentials) {
  if (credentials == nullptr) credentials = grpc::InsecureChannelCredentials();
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetMaxReceiveMessageSize(-1);
  Channels channels;
  for (int i = 0; i < connections; ++i) {
    channels.push_back(grpc::CreateCustomChannel(address, credentials, arguments));
  }
  return channels;
}

int RunOnSynth(const char* program, const std::string& bin_dir, const std::vector<std::string>& shape,
               const std::function<absl::Status(const std::string& checkpoint)>& run) {
  const absl::StatusOr<std::string> checkpoint = Synthesise(bin_dir, shape);
  absl::Status status = checkpoint.status();
  if (status.ok()) {
    status = run(*checkpoint);
    std::filesystem::remove_all(*checkpoint);
  }
  if (!status.ok()) std::fprintf(stderr, "%s: %s\n", program, status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

int RunOnTinyCheckpoint(const char* program, const std::string& bin_dir,
                        const std::function<absl::Status(const std::string& checkpoint)>& run) {
  return RunOnSynth(program, bin_dir, {"--like", "olmoe", "--experts", "8", "--intermediate", "64"}, run);
}

}  // namespace expertd::bench
