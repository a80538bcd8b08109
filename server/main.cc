// expertd: see README.md.
#include "CLI/CLI.hpp"
#include "server/commands/serve.h"
#include "server/lifecycle.h"
#include "server/server.h"

int main(int argc, char** argv) {
  CLI::App app("expertd: Mixture-of-Experts layers as a service", "expertd");
  app.set_version_flag("--version", std::string("expertd ") + std::string(expertd::kVersion));
  app.require_subcommand(1);
  int exit_code = expertd::kExitOk;
  expertd::AddServeCommand(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? expertd::kExitOk : expertd::kExitUsage;
  }
  return exit_code;
}
