// `expertd simulate --trace FILE --batch-us N ...`: what a trace of requests would do to a server of that speed.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// Adds the subcommand. When it is chosen, its callback prints a table and sets *exit_code: 0, or 2 for flags or a trace
// that are wrong.
void AddSimulateCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
