// expertd: see README.md.
#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "server/commands/commands.h"
#include "server/lifecycle.h"
#include "server/server.h"

int main(int argc, char** argv) {
  CLI::App app("expertd: Mixture-of-Experts layers as a service", "expertd");
  app.set_version_flag("--version", std::string("expertd ") + std::string(expertd::kVersion));
  app.require_subcommand(1);
  // One line: scripts and people read the first.
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return absl::StrCat("expertd: ", error.what(), " (see --help)\n");
  });
  int exit_code = expertd::kExitOk;
  expertd::AddServeCommand(app, &exit_code);
  expertd::AddInspectCommand(app, &exit_code);
  expertd::AddProbeCommand(app, &exit_code);
  expertd::AddSimulateCommand(app, &exit_code);
  expertd::AddVerifyCommand(app, &exit_code);
  expertd::AddSynthCommand(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? expertd::kExitOk : expertd::kExitUsage;
  }
  return exit_code;
}
