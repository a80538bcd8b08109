// `expertd probe [--address A] [--service S]`: asks the health service of a server, for container and systemd checks on
// machines without a shell or another gRPC client.
#pragma once

namespace CLI {
class App;
}

namespace expertd {

// Adds the subcommand. When it is chosen, its callback asks once, prints one line and sets *exit_code: 0 for SERVING,
// otherwise 1 (another status, a name that the server does not know, no answer within the timeout).
void AddProbeCommand(CLI::App& app, int* exit_code);

}  // namespace expertd
