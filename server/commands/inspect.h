// `expertd inspect DIR [--json] [--family F]`: what a checkpoint holds and what of it expertd can run.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// Adds the subcommand. When it is chosen, its callback prints the answer and sets *exit_code: 0, or 3 when the
// checkpoint is broken or holds no layer that can run.
void AddInspectCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
