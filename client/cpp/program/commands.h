// The subcommands of expertd-client. Each sets *exit_code when it has run.
#pragma once

#include <string>

#include "absl/status/status.h"
#include "client/cpp/connection.h"

namespace CLI {
class App;
}

namespace expertd::client {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;       // a request failed, or a check did
inline constexpr int kExitUsage = 2;        // wrong flags or an unusable input file
inline constexpr int kExitUnreachable = 3;  // no expertd answers at the endpoint

// What main does: all of the subcommands below. Gives the exit code.
int RunCommandLine(int argc, char** argv);

void AddStatusCommand(CLI::App& app, int* exit_code);
void AddForwardCommand(CLI::App& app, int* exit_code);
void AddBenchCommand(CLI::App& app, int* exit_code);
void AddAdminCommands(CLI::App& app, int* exit_code);  // load, unload

// --endpoint and what it takes to be let in there; also as EXPERTD_ENDPOINT, EXPERTD_TLS_CA, ...
void AddConnectionFlags(CLI::App& command, ClientOptions& options);

// Prints the status on one line of stderr and returns `exit_code`.
int Complain(const absl::Status& status, int exit_code);

}  // namespace expertd::client
