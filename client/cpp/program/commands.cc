#include "client/cpp/program/commands.h"

#include <cstdio>

namespace expertd::client {

void AddEndpointOption(CLI::App& command, std::string& endpoint) {
  command.add_option("--endpoint", endpoint, "The server: host:port, dns:///..., unix:...")
      ->envname("EXPERTD_ENDPOINT")
      ->capture_default_str();
}

int Complain(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "expertd-client: %s\n", status.ToString(absl::StatusToStringMode::kWithNoExtraData).c_str());
  return exit_code;
}

}  // namespace expertd::client
