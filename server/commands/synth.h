// `expertd synth --like MODEL --out DIR`: a checkpoint of random weights with a real model's shapes and names.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// Adds the subcommand. When it is chosen, its callback writes the checkpoint and sets *exit_code: 0; 2 when the flags
// ask for what cannot be; 1 when writing failed.
void AddSynthCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
