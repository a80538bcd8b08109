// expertd-client: look at, call and load-test an expertd server.
#include <CLI/CLI.hpp>

#include "client/cpp/program/commands.h"

int main(int argc, char** argv) {
  CLI::App app("Looks at, calls and load-tests an expertd server.", "expertd-client");
  app.footer(
      "Exit codes: 0 ok, 1 a request or a check failed, 2 wrong flags or an unusable input file, 3 no server answers.");
  app.require_subcommand(1);
  int exit_code = expertd::client::kExitOk;
  expertd::client::AddStatusCommand(app, &exit_code);
  expertd::client::AddForwardCommand(app, &exit_code);
  expertd::client::AddBenchCommand(app, &exit_code);
  expertd::client::AddAdminCommands(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool help = error.get_exit_code() == 0;
    app.exit(error);
    return help ? expertd::client::kExitOk : expertd::client::kExitUsage;
  }
  return exit_code;
}
