#include "tests/integration/server_process.h"

#include <signal.h>

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace expertd::testing {

absl::StatusOr<std::unique_ptr<ServerProcess>> ServerProcess::Start(const std::string& bin_dir,
                                                                    const std::vector<std::string>& flags,
                                                                    std::chrono::milliseconds timeout) {
  std::vector<std::string> argv = {bin_dir + "/expertd", "serve"};
  for (const char* address : {"--listen", "--metrics-address"}) {
    if (std::find(flags.begin(), flags.end(), address) == flags.end())
      argv.insert(argv.end(), {address, "127.0.0.1:0"});
  }
  argv.insert(argv.end(), flags.begin(), flags.end());
  auto process = Process::Start(argv);
  if (!process.ok()) return process.status();
  auto server = std::make_unique<ServerProcess>();
  server->process_ = *std::move(process);
  const auto address = server->process_->WaitForLine("listening on ", timeout);
  const auto metrics = server->process_->WaitForLine("metrics on ", timeout);
  const auto ready = server->process_->WaitForLine("ready", timeout);
  if (!address.has_value() || !metrics.has_value() || !ready.has_value()) {
    server->process_->Signal(SIGKILL);
    const auto code = server->process_->Wait(std::chrono::seconds(10));
    return absl::UnavailableError(absl::StrCat("expertd serve did not get ready (exit code ", code.value_or(-1), ")\n",
                                               server->process_->out(), server->process_->err()));
  }
  server->address_ = *address;
  server->metrics_address_ = *metrics;
  return server;
}

}  // namespace expertd::testing
