#include "client/cpp/program/commands.h"

#include <CLI/CLI.hpp>
#include <cstdio>

namespace expertd::client {

void AddConnectionFlags(CLI::App& command, ClientOptions& options) {
  constexpr char kGroup[] = "Connection";
  command
      .add_option("--endpoint", options.endpoint, "The server: host:port, dns:///host:port (all replicas), unix:...")
      ->envname("EXPERTD_ENDPOINT")
      ->capture_default_str()
      ->group(kGroup);
  const auto tls = [&options]() -> TlsOptions& {
    return options.tls.has_value() ? *options.tls : options.tls.emplace();
  };
  command
      .add_flag_callback(
          "--tls", [tls] { tls(); }, "Encrypt; the system's roots verify the server")
      ->group(kGroup);
  const struct {
    const char *flag, *variable;
    std::string TlsOptions::*field;
    const char* help;
  } files[] = {{"--tls-ca", "EXPERTD_TLS_CA", &TlsOptions::ca_file, "Encrypt; this PEM file verifies the server"},
               {"--tls-cert", "EXPERTD_TLS_CERT", &TlsOptions::certificate_file, "PEM file: our certificate"},
               {"--tls-key", "EXPERTD_TLS_KEY", &TlsOptions::key_file, "PEM file: its key"},
               {"--tls-server-name", "EXPERTD_TLS_SERVER_NAME", &TlsOptions::server_name,
                "Name in the server's certificate (default: the endpoint's host)"}};
  for (const auto& [flag, variable, field, help] : files) {
    command
        .add_option_function<std::string>(
            flag, [tls, field = field](const std::string& value) { tls().*field = value; }, help)
        ->envname(variable)
        ->group(kGroup);
  }
  command
      .add_option_function<std::string>(
          "--token-file", [&options](const std::string& path) { options.token = TokenFromFile(path); },
          "File of the bearer token that calls carry")
      ->envname("EXPERTD_TOKEN_FILE")
      ->group(kGroup);
}

int Complain(const absl::Status& status, int exit_code) {
  std::fprintf(stderr, "expertd-client: %s\n", status.ToString(absl::StatusToStringMode::kWithNoExtraData).c_str());
  return exit_code;
}

int RunCommandLine(int argc, char** argv) {
  CLI::App app("Looks at, calls and load-tests an expertd server.", "expertd-client");
  app.footer(
      "Exit codes: 0 ok, 1 a request or a check failed, 2 wrong flags or an unusable input file, 3 no server answers.");
  app.require_subcommand(1);
  int exit_code = kExitOk;
  AddStatusCommand(app, &exit_code);
  AddForwardCommand(app, &exit_code);
  AddBenchCommand(app, &exit_code);
  AddAdminCommands(app, &exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const bool help = error.get_exit_code() == 0;
    app.exit(error);
    return help ? kExitOk : kExitUsage;
  }
  return exit_code;
}

}  // namespace expertd::client
