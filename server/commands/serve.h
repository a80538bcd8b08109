// `expertd serve`.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// Adds the subcommand; when it is chosen, app.parse runs it to its end and leaves the exit code (server/lifecycle.h).
void AddServeCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
