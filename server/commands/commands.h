// The subcommands of expertd. Each function adds one to `app`; when it is chosen, app.parse runs it to its end and
// leaves its exit code (server/lifecycle.h) in *exit_code.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// What main does: all of the subcommands below. Gives the exit code.
int RunCommandLine(int argc, char** argv);

// `expertd serve`: every exit code there is.
void AddServeCommand(CLI::App& app, int* exit_code);

// `expertd inspect DIR [--json] [--family F]`: what a checkpoint holds and what of it expertd can run. 3: it is broken,
// or holds no layer that can run.
void AddInspectCommand(CLI::App& app, int* exit_code);

// `expertd verify`: an engine or a running server against expected outputs. 1: not all within the tolerance; 2 usage;
// 3: checkpoint or file invalid; 5: the device or the server cannot be used.
void AddVerifyCommand(CLI::App& app, int* exit_code);

// `expertd synth --like MODEL --out DIR`: a checkpoint of random weights with a real model's shapes and names. 1:
// writing failed; 2: the flags ask for what cannot be.
void AddSynthCommand(CLI::App& app, int* exit_code);

// `expertd simulate --trace FILE --batch-us N ...`: what a trace of requests would do to a server of that speed. 2:
// flags or trace are wrong.
void AddSimulateCommand(CLI::App& app, int* exit_code);

// `expertd probe [--address A] [--service S]`: asks the health service of a server once, for container and systemd
// checks on machines without a shell or another gRPC client. 1: anything but SERVING (another status, a name that the
// server does not know, no answer within the timeout).
void AddProbeCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
