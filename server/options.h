// What a server can be told. Every option is one row of a table (options.cc): its flag, its EXPERTD_... variable, its
// key in the configuration file, its default, its limits, its help and its line in the log all come from there.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"

namespace CLI {
class App;
}

namespace expertd {

struct ServerOptions {
  // Model
  std::vector<std::string> checkpoints;  // DIR or NAME=DIR
  std::string layers;                    // "0-3,7"; empty: every MoE layer
  std::string family;                    // overrides config.json's model_type

  // Engine
  std::string device = "cpu";  // cpu, cuda:N, or null (copies rows: measures everything but the arithmetic)
  std::string path = "auto";   // of experts on a GPU: auto, sorted, batched or fp8-rows
  std::int64_t threads = 0;    // 0: one for each core this process may use
  std::int64_t max_batch_rows = 4096;
  std::int64_t buffer_mib = 1024;  // row buffers: requests and answers that are held
  std::int64_t batch_window_us = 0;
  std::int64_t stage_batches_ahead = 2;  // on a GPU; 0: rows are copied there when their batch begins
  std::int64_t inline_batch_us = 100;    // 0: every batch runs on a scheduler thread
  std::int64_t busy_poll_us = 0;         // 0: idle threads sleep
  std::int64_t hang_timeout_ms = 0;      // 0: what suits the device
  std::int64_t null_batch_us = 0;        // --device null only: what a batch takes,
  std::int64_t null_row_ns = 0;          // and each of its rows

  // Listeners
  std::string listen = "127.0.0.1:8470";
  std::int64_t grpc_memory_mib = 4096;             // for the transport's buffers; 0: no limit
  std::int64_t max_connection_age_ms = 0;          // 0: no limit
  std::int64_t self_probe_interval_ms = 5000;      // 0: none
  std::string metrics_address = "127.0.0.1:9470";  // empty: none
  std::string health_address;                      // empty: none
  bool insecure = false;                           // plaintext beyond this machine

  // Security
  std::string tls_cert, tls_key;                  // PEM files, both or neither: TLS on `listen`
  std::string tls_client_ca;                      // PEM file: clients need a certificate that it signs
  std::string tokens_file;                        // bearer tokens (access/token_table.h); every call needs one
  std::vector<std::string> admin_identities;      // of client certificates, where there are no tokens
  std::string metrics_tls_cert, metrics_tls_key;  // likewise: TLS on `metrics_address`
  std::string metrics_tls_client_ca;              // PEM file: scrapers need a certificate that it signs

  // Admin
  std::string model_root;              // admin calls load checkpoints below it; empty: there are no admin calls
  std::int64_t max_hidden_size = 0;    // of layers to come: sets the message limit; 0: the configured ones'
  std::int64_t weight_budget_mib = 0;  // 0: what the machine has

  // Metrics
  std::int64_t expert_series = 0;  // 0: experts are not counted

  // Requests
  std::int64_t max_rows_per_request = 8192;
  std::int64_t max_queued_rows = 65536;
  std::int64_t max_in_flight_per_stream = 64;
  std::int64_t max_streams_per_connection = 256;
  std::int64_t default_timeout_ms = 30000;
  std::string tenant_weights;  // "NAME=WEIGHT,..."; who is not named weighs 1
  std::int64_t write_timeout_ms = 5000;
  std::int64_t output_mib_per_call = 64;  // answers that callers have not taken
  std::int64_t output_mib_per_connection = 256;
  std::int64_t output_mib = 512;
  bool refuse_non_finite = false;
  bool kserve_shared_memory = false;  // callers of the open inference protocol may bring POSIX shared memory

  // Fast lane
  std::string fast_lane_socket;  // empty: off
  std::int64_t fast_lane_mib = 1024;
  std::int64_t fast_lane_device_mib = 0;  // 0: no regions in device memory
  std::int64_t fast_lane_session_mib = 256;
  std::int64_t fast_lane_regions = 16;
  std::int64_t fast_lane_spin_us = 0;

  // Stop
  std::int64_t drain_grace_ms = 1000;
  std::int64_t drain_timeout_ms = 30000;

  // Log
  std::string log_level = "info";
  std::string log_format = "text";
  std::string trace_file;  // OTLP-JSON lines, appended; empty: none

  // After how long a batch counts as hung: a GPU's takes milliseconds, a large one on few CPU cores may take a minute.
  std::int64_t HangTimeoutMs() const {
    return hang_timeout_ms > 0 ? hang_timeout_ms : device == "cpu" ? 300'000 : 3'000;
  }

  // What no single flag's limits can say: InvalidArgument naming flag and value. Addresses beyond loopback and unix
  // sockets need TLS or `insecure`, metrics included; the health listener says nothing worth hiding.
  absl::Status Validate() const;

  // (flag without dashes, value) in the order of the table.
  // Nothing in it is secret: secrets are in files only.
  std::vector<std::pair<std::string, std::string>> Effective() const;

 private:
  absl::Status ValidateSecurity() const;
};

// Adds the flags, --config and what else the table says to `app`. `options` and `app` must live until
// ResolveServerOptions.
void AddServerOptions(CLI::App& app, ServerOptions* options);

// Fills in what the command line left open: environment, then configuration file, then default. To be called once,
// when `app` was parsed. InvalidArgument naming the source, the option and the value.
absl::Status ResolveServerOptions(CLI::App& app, const ServerOptions& options);

// "0-3,7": ascending, without repetition. InvalidArgument naming the part that is wrong.
absl::Status ParseLayerList(absl::string_view text, std::vector<std::int64_t>* layers);

// True for addresses that only this machine can reach: 127.*, ::1, localhost and unix sockets.
bool IsLocalAddress(absl::string_view address);

}  // namespace expertd
