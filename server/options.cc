#include "server/options.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdlib>
#include <limits>
#include <set>
#include <variant>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "server/scheduler/tenants.h"

namespace expertd {
namespace {

constexpr std::int64_t kMaxLayerIndex = 9999;

using Member = std::variant<std::string ServerOptions::*, std::vector<std::string> ServerOptions::*,
                            std::int64_t ServerOptions::*, bool ServerOptions::*>;

struct OptionRow {
  const char* name;  // the flag without its dashes
  const char* group;
  Member member;
  const char* help;
  // Integers only.
  std::int64_t min = 0;
  std::int64_t max = std::numeric_limits<std::int64_t>::max();
  // Strings only: separated by '|'; null: anything.
  const char* choices = nullptr;
};

constexpr std::int64_t kDayMs = 86'400'000;

const OptionRow kOptions[] = {
    {"checkpoint", "Model", &ServerOptions::checkpoints,
     "Folder of a published checkpoint, or NAME=DIR to name the model; may be repeated"},
    {"layers", "Model", &ServerOptions::layers, "Layers to load of every checkpoint, such as 0-3,7 (default: all)"},
    {"family", "Model", &ServerOptions::family, "Overrides config.json's model_type"},

    {"device", "Engine", &ServerOptions::device, "cpu, cuda:N, or null (no arithmetic, for benchmarks of the service)"},
    {.name = "path",
     .group = "Engine",
     .member = &ServerOptions::path,
     .help =
         "How experts are computed on a GPU; batched: by cuBLAS, a row's bits then depend on its batch; fp8-rows: rows "
         "quantised to fp8 for fp8 weights, 4e-2 off",
     .choices = "auto|sorted|batched|fp8-rows"},
    {"threads", "Engine", &ServerOptions::threads, "Threads that compute; 0: one for each core", 0, 4096},
    {"max-batch-rows", "Engine", &ServerOptions::max_batch_rows, "Rows that are computed together, at most", 1,
     1 << 20},
    {"buffer-mib", "Engine", &ServerOptions::buffer_mib, "Memory for the rows of requests and answers, MiB", 1,
     1 << 22},
    {"batch-window-us", "Engine", &ServerOptions::batch_window_us,
     "How long a batch may wait for company, microseconds", 0, 1'000'000},
    {"stage-batches-ahead", "Engine", &ServerOptions::stage_batches_ahead,
     "On a GPU: rows of large requests are copied there while they wait, so many batches of them; 0: with their batch",
     0, 16},
    {"inline-batch-us", "Engine", &ServerOptions::inline_batch_us,
     "Batches expected to take no longer run on the thread that received the request, on cpu; 0: none, microseconds", 0,
     10'000},
    {"busy-poll-us", "Engine", &ServerOptions::busy_poll_us,
     "After a batch one thread looks for the next so long before it sleeps: saves a wake-up, costs a core, "
     "microseconds",
     0, 1'000'000},
    {"hang-timeout-ms", "Engine", &ServerOptions::hang_timeout_ms,
     "A batch that runs for longer means a dead device (exit 7), milliseconds; 0: 300000 on cpu, else 3000", 0, kDayMs},
    {"null-batch-us", "Engine", &ServerOptions::null_batch_us,
     "With --device null: what a batch takes, to size and test a service for a device of that speed, microseconds", 0,
     60'000'000},
    {"null-row-ns", "Engine", &ServerOptions::null_row_ns, "With --device null: what each row adds to it, nanoseconds",
     0, 1'000'000'000},

    {"listen", "Listeners", &ServerOptions::listen, "Address of the service: HOST:PORT or unix:PATH; port 0: any"},
    {"metrics-address", "Listeners", &ServerOptions::metrics_address,
     "HOST:PORT of the Prometheus endpoint; empty: none"},
    {"health-address", "Listeners", &ServerOptions::health_address,
     "HOST:PORT of a plaintext listener with nothing but gRPC health; empty: none"},
    {"insecure", "Listeners", &ServerOptions::insecure, "Allow plaintext on addresses that other machines can reach"},

    {"grpc-memory-mib", "Listeners", &ServerOptions::grpc_memory_mib,
     "Memory that the transport may buffer in before it reads more slowly, MiB; 0: no limit", 0, 1 << 22},
    {"max-connection-age-ms", "Listeners", &ServerOptions::max_connection_age_ms,
     "Connections older than that are asked to go, streams at 0.8 of it, so that callers spread; 0: never, "
     "milliseconds",
     0, 30 * kDayMs},
    {"self-probe-interval-ms", "Listeners", &ServerOptions::self_probe_interval_ms,
     "How often the server asks itself whether it still answers; three times not: exit 4; 0: never, milliseconds", 0,
     kDayMs},

    {"tls-cert", "Security", &ServerOptions::tls_cert, "PEM file: the service's certificate and its chain; reloaded"},
    {"tls-key", "Security", &ServerOptions::tls_key, "PEM file: its key; reloaded"},
    {"tls-client-ca", "Security", &ServerOptions::tls_client_ca,
     "PEM file: clients need a certificate that one of these signed, and are the tenant it names; reloaded"},
    {"tokens-file", "Security", &ServerOptions::tokens_file,
     "File of bearer tokens, their roles and tenants; every call needs one; reloaded"},
    {"admin-identity", "Security", &ServerOptions::admin_identities,
     "Name in a client certificate that may administer (with --tls-client-ca, without tokens); may be repeated"},
    {"metrics-tls-cert", "Security", &ServerOptions::metrics_tls_cert,
     "PEM file: certificate and chain of the Prometheus endpoint; reloaded"},
    {"metrics-tls-key", "Security", &ServerOptions::metrics_tls_key, "PEM file: its key; reloaded"},
    {"metrics-tls-client-ca", "Security", &ServerOptions::metrics_tls_client_ca,
     "PEM file: scrapers need a certificate that one of these signed; reloaded"},

    {"model-root", "Admin", &ServerOptions::model_root,
     "Folder below which admin calls may load checkpoints; empty: no admin calls"},
    {"max-hidden-size", "Admin", &ServerOptions::max_hidden_size,
     "Largest hidden size of layers that may be loaded later; 0: that of the configured ones", 0, 1 << 20},
    {"weight-budget-mib", "Admin", &ServerOptions::weight_budget_mib,
     "Weights of all layers together, when admin calls load more, MiB; 0: what the machine has", 0, 1 << 24},

    {"expert-series", "Metrics", &ServerOptions::expert_series,
     "Tell the rows of each expert, in so many series at most, and each layer's imbalance; 0: neither", 0, 1 << 20},

    {"max-rows-per-request", "Requests", &ServerOptions::max_rows_per_request, "Rows of one request, at most", 1,
     1 << 20},
    {"max-queued-rows", "Requests", &ServerOptions::max_queued_rows, "Rows accepted and not yet answered, at most", 1,
     1 << 24},
    {"max-in-flight-per-stream", "Requests", &ServerOptions::max_in_flight_per_stream,
     "Requests of one stream that are not yet answered, at most", 1, 65536},
    {"max-streams-per-connection", "Requests", &ServerOptions::max_streams_per_connection,
     "Calls in progress on one connection, at most", 1, 65536},
    {"default-timeout-ms", "Requests", &ServerOptions::default_timeout_ms,
     "For requests that come without a deadline, milliseconds", 1, kDayMs},
    {"tenant-weights", "Requests", &ServerOptions::tenant_weights,
     "NAME=WEIGHT,...: how tenants share the device while several want it; who is not named weighs 1"},
    {"write-timeout-ms", "Requests", &ServerOptions::write_timeout_ms,
     "A caller that does not read its answer for so long is cancelled, and after a tenth of it is stalled, "
     "milliseconds",
     1, kDayMs},
    {"output-mib-per-call", "Requests", &ServerOptions::output_mib_per_call,
     "Answers not yet taken: a stream is not read from beyond half of it, a caller that has stopped reading is "
     "cancelled "
     "beyond it, MiB",
     1, 1 << 22},
    {"output-mib-per-connection", "Requests", &ServerOptions::output_mib_per_connection,
     "The same for the stalled calls of a connection, MiB", 1, 1 << 22},
    {"output-mib", "Requests", &ServerOptions::output_mib,
     "The same for all calls: beyond it every stalled one is cancelled, MiB", 1, 1 << 22},
    {"refuse-non-finite", "Requests", &ServerOptions::refuse_non_finite, "Refuse rows that hold NaN or infinity"},
    {"kserve-shared-memory", "Requests", &ServerOptions::kserve_shared_memory,
     "Callers of the open inference protocol on this machine may bring POSIX shared memory"},

    {"fast-lane-socket", "Fast lane", &ServerOptions::fast_lane_socket,
     "Path of the unix socket that hands shared memory to callers on this host; empty: no fast lane"},
    {"fast-lane-mib", "Fast lane", &ServerOptions::fast_lane_mib, "Shared memory of all sessions, at most, MiB", 1,
     1 << 22},
    {"fast-lane-device-mib", "Fast lane", &ServerOptions::fast_lane_device_mib,
     "Device memory that callers on this host may map (CUDA IPC), of all sessions, at most, MiB; 0: none", 0, 1 << 22},
    {"fast-lane-session-mib", "Fast lane", &ServerOptions::fast_lane_session_mib,
     "Shared memory of one session, on the host and the device, at most, MiB", 1, 1 << 22},
    {"fast-lane-regions", "Fast lane", &ServerOptions::fast_lane_regions, "Regions of one session, at most", 1, 1024},
    {"fast-lane-spin-us", "Fast lane", &ServerOptions::fast_lane_spin_us,
     "How long the rings are watched after their last message before the thread sleeps; keeps a core busy meanwhile,\n"
     "microseconds",
     0, 1'000'000},

    {"drain-grace-ms", "Stop", &ServerOptions::drain_grace_ms,
     "After SIGTERM: how long new work is still taken while balancers turn away, milliseconds", 0, kDayMs},
    {"drain-timeout-ms", "Stop", &ServerOptions::drain_timeout_ms,
     "After the grace: how long accepted work may take, milliseconds", 1, kDayMs},

    {.name = "log-level",
     .group = "Log",
     .member = &ServerOptions::log_level,
     .help = "Least severity that is logged",
     .choices = "debug|info|warning|error"},
    {.name = "log-format",
     .group = "Log",
     .member = &ServerOptions::log_format,
     .help = "One line an event, as",
     .choices = "text|json"},
    {.name = "trace-file",
     .group = "Log",
     .member = &ServerOptions::trace_file,
     .help = "File that spans of sampled requests are appended to, as OTLP-JSON lines; empty: none"},
};

template <class... F>
struct Overloaded : F... {
  using F::operator()...;
};
template <class... F>
Overloaded(F...) -> Overloaded<F...>;

std::string VariableOf(const OptionRow& row) {
  return absl::StrCat("EXPERTD_", absl::AsciiStrToUpper(absl::StrReplaceAll(row.name, {{"-", "_"}})));
}

std::string ValueOf(const OptionRow& row, const ServerOptions& options) {
  return std::visit(
      Overloaded{[&](std::string ServerOptions::*m) { return options.*m; },
                 [&](std::vector<std::string> ServerOptions::*m) { return absl::StrJoin(options.*m, ","); },
                 [&](std::int64_t ServerOptions::*m) { return absl::StrCat(options.*m); },
                 [&](bool ServerOptions::*m) { return std::string(options.*m ? "true" : "false"); }},
      row.member);
}

CLI::Option* AddRow(CLI::App& app, const OptionRow& row, ServerOptions* options) {
  const std::string flag = absl::StrCat("--", row.name);
  return std::visit(
      Overloaded{[&](std::string ServerOptions::*m) {
                   CLI::Option* option = app.add_option(flag, options->*m, row.help)->capture_default_str();
                   if (row.choices)
                     option->check(CLI::IsMember(std::vector<std::string>(absl::StrSplit(row.choices, '|'))));
                   return option;
                 },
                 [&](std::vector<std::string> ServerOptions::*m) {
                   return app.add_option(flag, options->*m, row.help)->type_size(1)->allow_extra_args(false);
                 },
                 [&](std::int64_t ServerOptions::*m) {
                   return app.add_option(flag, options->*m, row.help)
                       ->check(CLI::Range(row.min, row.max))
                       ->capture_default_str();
                 },
                 [&](bool ServerOptions::*m) { return app.add_flag(flag, options->*m, row.help); }},
      row.member);
}

// Sets `option` as if the command line had.
absl::Status Assign(CLI::Option& option, const std::vector<std::string>& values, absl::string_view source) {
  try {
    for (const std::string& value : values) option.add_result(value);
    option.run_callback();
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(absl::StrCat(source, "=", absl::StrJoin(values, ","), ": ", error.what()));
  }
  return absl::OkStatus();
}

absl::Status ReadConfig(const std::string& path, std::vector<CLI::ConfigItem>* items) {
  try {
    *items = CLI::ConfigTOML().from_file(path);
  } catch (const CLI::Error& error) {
    return absl::InvalidArgumentError(absl::StrCat("--config ", path, ": ", error.what()));
  }
  for (const CLI::ConfigItem& item : *items) {
    if (item.name == "++" || item.name == "--") continue;  // a section begins or ends; its keys are refused below
    const bool known = item.parents.empty() && std::any_of(std::begin(kOptions), std::end(kOptions),
                                                           [&](const auto& row) { return item.name == row.name; });
    if (!known) return absl::InvalidArgumentError(absl::StrCat("--config ", path, ": unknown key ", item.fullname()));
  }
  return absl::OkStatus();
}

}  // namespace

void AddServerOptions(CLI::App& app, ServerOptions* options) {
  for (const OptionRow& row : kOptions) {
    // The variable is named for --help only (env() would win over nothing but read too early): see Resolve.
    AddRow(app, row, options)->group(row.group);
  }
  app.add_option("--config", "Configuration file (TOML or INI), keys as the flags without dashes")
      ->type_name("FILE")
      ->group("Configuration");
  app.footer(
      "Every flag is also an environment variable (--max-batch-rows: EXPERTD_MAX_BATCH_ROWS) and a key of the\n"
      "configuration file (max-batch-rows). Flags win over the environment, the environment over the file.");
}

// CLI11 itself lets the file win over the environment, and reads no file for a subcommand.
absl::Status ResolveServerOptions(CLI::App& app, const ServerOptions& options) {
  CLI::Option* config = app.get_option("--config");
  const char* config_variable = std::getenv("EXPERTD_CONFIG");
  std::string path = config->count() > 0 ? config->as<std::string>() : (config_variable ? config_variable : "");
  std::vector<CLI::ConfigItem> items;
  if (!path.empty()) {
    if (absl::Status status = ReadConfig(path, &items); !status.ok()) return status;
  }
  for (const OptionRow& row : kOptions) {
    CLI::Option* option = app.get_option(absl::StrCat("--", row.name));
    if (option->count() > 0) continue;
    const bool repeatable = std::holds_alternative<std::vector<std::string> ServerOptions::*>(row.member);
    if (const char* value = std::getenv(VariableOf(row).c_str()); value != nullptr) {
      std::vector<std::string> values = {value};
      if (repeatable) values = absl::StrSplit(value, ',', absl::SkipEmpty());
      if (absl::Status status = Assign(*option, values, VariableOf(row)); !status.ok()) return status;
      continue;
    }
    for (const CLI::ConfigItem& item : items) {
      if (item.name != row.name) continue;
      absl::Status status = Assign(*option, item.inputs, absl::StrCat("--config ", path, ": ", row.name));
      if (!status.ok()) return status;
    }
  }
  return options.Validate();
}

absl::Status ServerOptions::Validate() const {
  if (checkpoints.empty() && (model_root.empty() || max_hidden_size == 0)) {
    return absl::InvalidArgumentError(
        "--checkpoint: needed at least once (or --model-root and --max-hidden-size, to load later)");
  }
  for (const std::string& checkpoint : checkpoints) {
    if (checkpoint.empty() || checkpoint.front() == '=' || checkpoint.back() == '=') {
      return absl::InvalidArgumentError(absl::StrCat("--checkpoint ", checkpoint, ": wants DIR or NAME=DIR"));
    }
  }
  std::vector<std::int64_t> indices;
  if (absl::Status status = ParseLayerList(layers, &indices); !status.ok()) return status;
  if (const auto weights = TenantWeights::Parse(tenant_weights); !weights.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--tenant-weights: ", weights.status().message()));
  }
  if (device != "null" && (null_batch_us > 0 || null_row_ns > 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--null-batch-us, --null-row-ns: only with --device null, not with ", device));
  }
  if (fast_lane_device_mib > 0 && fast_lane_socket.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--fast-lane-device-mib ", fast_lane_device_mib, ": needs --fast-lane-socket"));
  }
  if (fast_lane_device_mib > 0 && refuse_non_finite) {
    return absl::InvalidArgumentError(absl::StrCat("--fast-lane-device-mib ", fast_lane_device_mib,
                                                   ": not with --refuse-non-finite, which looks at rows on the host"));
  }
  if (listen.empty()) return absl::InvalidArgumentError("--listen: wants HOST:PORT or unix:PATH");
  return ValidateSecurity();
}

absl::Status ServerOptions::ValidateSecurity() const {
  const struct {
    const char* flag;
    const std::string& address;
    bool encrypted;
    const char* how;
  } doors[] = {{"--listen", listen, !tls_cert.empty(), "--tls-cert and --tls-key encrypt"},
               {"--metrics-address", metrics_address, !metrics_tls_cert.empty(),
                "--metrics-tls-cert and --metrics-tls-key encrypt"}};
  for (const auto& door : doors) {
    if (door.address.empty() || door.encrypted || insecure || IsLocalAddress(door.address)) continue;
    return absl::InvalidArgumentError(absl::StrCat(door.flag, " ", door.address,
                                                   ": other machines can reach it in plaintext; ", door.how,
                                                   ", --insecure allows that"));
  }
  const struct {
    bool wrong;
    const char* message;
  } rules[] = {
      {tls_cert.empty() != tls_key.empty(), "--tls-cert and --tls-key: one needs the other"},
      {!tls_client_ca.empty() && tls_cert.empty(), "--tls-client-ca: needs --tls-cert and --tls-key"},
      {!admin_identities.empty() && tls_client_ca.empty(), "--admin-identity: needs --tls-client-ca"},
      {!admin_identities.empty() && !tokens_file.empty(),
       "--admin-identity: with --tokens-file it is the tokens that say who may administer"},
      {metrics_tls_cert.empty() != metrics_tls_key.empty(),
       "--metrics-tls-cert and --metrics-tls-key: one needs the other"},
      {!metrics_tls_client_ca.empty() && metrics_tls_cert.empty(),
       "--metrics-tls-client-ca: needs --metrics-tls-cert and --metrics-tls-key"},
      {!model_root.empty() && tokens_file.empty() && admin_identities.empty() &&
           (!tls_client_ca.empty() || !IsLocalAddress(listen)),
       "--model-root: nobody could have the admin role; --tokens-file or --admin-identity gives it"},
  };
  for (const auto& rule : rules) {
    if (rule.wrong) return absl::InvalidArgumentError(rule.message);
  }
  return absl::OkStatus();
}

std::vector<std::pair<std::string, std::string>> ServerOptions::Effective() const {
  std::vector<std::pair<std::string, std::string>> values;
  for (const OptionRow& row : kOptions) values.emplace_back(row.name, ValueOf(row, *this));
  return values;
}

absl::Status ParseLayerList(absl::string_view text, std::vector<std::int64_t>* layers) {
  layers->clear();
  if (text.empty()) return absl::OkStatus();
  std::set<std::int64_t> found;
  for (absl::string_view part : absl::StrSplit(text, ',')) {
    const std::vector<absl::string_view> ends = absl::StrSplit(part, absl::MaxSplits('-', 1));
    std::int64_t first = 0, last = 0;
    const bool valid = absl::SimpleAtoi(ends.front(), &first) && absl::SimpleAtoi(ends.back(), &last) && first >= 0 &&
                       first <= last && last <= kMaxLayerIndex;
    if (!valid) {
      return absl::InvalidArgumentError(absl::StrCat("--layers ", text, ": '", part, "' is no layer (0..",
                                                     kMaxLayerIndex, ") or range of layers such as 0-3"));
    }
    for (std::int64_t layer = first; layer <= last; ++layer) found.insert(layer);
  }
  layers->assign(found.begin(), found.end());
  return absl::OkStatus();
}

bool IsLocalAddress(absl::string_view address) {
  if (absl::StartsWith(address, "unix:") || absl::StartsWith(address, "unix-abstract:")) return true;
  absl::string_view host = address.substr(0, address.rfind(':'));
  if (absl::ConsumePrefix(&host, "[")) return host == "::1]";
  if (host == "localhost") return true;
  // Four numbers, so that the name 127.example.com is not taken for an address.
  const std::vector<absl::string_view> octets = absl::StrSplit(host, '.');
  return octets.size() == 4 && octets[0] == "127" && std::all_of(octets.begin(), octets.end(), [](absl::string_view o) {
           int value = 0;
           return absl::SimpleAtoi(o, &value) && value >= 0 && value <= 255;
         });
}

}  // namespace expertd
