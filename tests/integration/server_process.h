// A real `expertd serve` on ports of the system's choice.
#pragma once

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "tests/integration/process.h"

namespace expertd::testing {

class ServerProcess {
 public:
  // Runs `<bin_dir>/expertd serve <flags>`, with --listen and --metrics-address on 127.0.0.1:0 unless the flags name
  // them, and waits until it says that it is ready. Unavailable with what it wrote when it does not.
  static absl::StatusOr<std::unique_ptr<ServerProcess>> Start(
      const std::string& bin_dir, const std::vector<std::string>& flags,
      std::chrono::milliseconds timeout = std::chrono::seconds(60));

  const std::string& address() const { return address_; }                  // "127.0.0.1:40123"
  const std::string& metrics_address() const { return metrics_address_; }  // likewise
  Process& process() { return *process_; }

 private:
  std::unique_ptr<Process> process_;
  std::string address_;
  std::string metrics_address_;
};

}  // namespace expertd::testing
