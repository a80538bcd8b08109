#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "server/commands/commands.h"
#include "server/lifecycle.h"
#include "server/server.h"

namespace expertd {

int RunCommandLine(int argc, char** argv) {
  CLI::App app("expertd: Mixture-of-Experts layers as a service", "expertd");
  app.set_version_flag("--version", std::string("expertd ") + std::string(kVersion));
  app.require_subcommand(1);
  // One line: scripts and people read the first.
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return absl::StrCat("expertd: ", error.what(), " (see --help)\n");
  });
  int exit_code = kExitOk;
  AddServeCommand(app, &exit_code);
  AddInspectCommand(app, &exit_code);
  AddProbeCommand(app, &exit_code);
  AddSimulateCommand(app, &exit_code);
  AddVerifyCommand(app, &exit_code);
  AddSynthCommand(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  return exit_code;
}

}  // namespace expertd
