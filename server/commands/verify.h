// `expertd verify`: an engine or a running server against expected outputs.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// Adds the subcommand; when it is chosen, app.parse runs it to its end and leaves the exit code: 0 all within the
// tolerance, 1 not, 2 usage, 3 checkpoint or file invalid, 5 the device or the server cannot be used.
void AddVerifyCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
