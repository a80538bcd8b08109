#include <CLI/CLI.hpp>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/commands/commands.h"
#include "server/lifecycle.h"
#include "server/scheduler/simulator.h"

namespace expertd {
namespace {

struct Flags {
  std::string trace;
  double batch_us = 0, row_us = 0, overhead_us = 0;
  std::int64_t max_batch_rows = 4096, max_queued_rows = 65536;
  std::int64_t batch_window_us = 0;
  std::int64_t buffer_mib = 1024, row_bytes = 16384;
  int concurrency = 1;
  std::string tenant_weights;
  std::vector<double> loads;
};

void Print(const std::string& load, const std::vector<TraceRequest>& trace, const SimulatedServer& server) {
  const Forecast forecast = Summarise(trace, Simulate(server, trace));
  const double seconds = trace.empty() ? 0 : std::chrono::duration<double>(trace.back().at).count();
  absl::PrintF("%-10s %10.1f %10.1f %10.3f %10.3f %8.1f%% %8.1f%%\n", load,
               seconds > 0 ? static_cast<double>(trace.size()) / seconds : 0.0, forecast.goodput, forecast.p50 * 1e3,
               forecast.p99 * 1e3, forecast.refused * 100, forecast.expired * 100);
}

absl::Status Simulate(const Flags& flags) {
  std::ifstream file(flags.trace);
  if (!file) return absl::InvalidArgumentError(absl::StrCat("--trace ", flags.trace, ": cannot be read"));
  const absl::StatusOr<std::vector<TraceRequest>> trace = ReadTrace(file);
  if (!trace.ok())
    return absl::InvalidArgumentError(absl::StrCat("--trace ", flags.trace, ": ", trace.status().message()));
  const absl::StatusOr<TenantWeights> weights = TenantWeights::Parse(flags.tenant_weights);
  if (!weights.ok()) return absl::InvalidArgumentError(absl::StrCat("--tenant-weights: ", weights.status().message()));
  if (flags.batch_us + flags.row_us <= 0)
    return absl::InvalidArgumentError("--batch-us, --row-us: one must be above 0");
  const SimulatedServer server = {
      .cost = {flags.batch_us * 1e-6, flags.row_us * 1e-6, flags.overhead_us * 1e-6},
      .limits = {.max_rows = flags.max_batch_rows, .window = std::chrono::microseconds(flags.batch_window_us)},
      .admission = {.max_rows = flags.max_queued_rows, .max_bytes = flags.buffer_mib << 20, .weights = *weights},
      .row_bytes = flags.row_bytes,
      .concurrency = flags.concurrency};
  const double capacity = Capacity(server.cost, flags.max_batch_rows, flags.concurrency);
  absl::PrintF("capacity: %.1f rows/s\n", capacity);
  absl::PrintF("%-10s %10s %10s %10s %10s %9s %9s\n", "load", "offered/s", "goodput/s", "p50 ms", "p99 ms", "refused",
               "expired");
  if (flags.loads.empty()) Print("as traced", *trace, server);
  for (const double load : flags.loads) {
    Print(absl::StrFormat("%g %%", load), AtRate(*trace, capacity * load / 100), server);
  }
  return absl::OkStatus();
}

}  // namespace

void AddSimulateCommand(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<Flags>();
  CLI::App* command = app.add_subcommand(
      "simulate",
      "Forecast latency and goodput of a trace on a device of known speed, with the server's own scheduler");
  command
      ->add_option("--trace", flags->trace,
                   "CSV: seconds,rows; with a line of names also layer, priority, timeout_us and tenant")
      ->required();
  command->add_option("--batch-us", flags->batch_us, "What a batch takes")->check(CLI::NonNegativeNumber);
  command->add_option("--row-us", flags->row_us, "What each of its rows adds")->check(CLI::NonNegativeNumber);
  command->add_option("--overhead-us", flags->overhead_us, "Of a request, outside of queue and batch")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--load", flags->loads, "Percent of the capacity, for example 70,90,120; default: as traced")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_option("--concurrency", flags->concurrency, "Batches at once")
      ->check(CLI::Range(1, 64))
      ->capture_default_str();
  // As of `expertd serve`.
  command->add_option("--max-batch-rows", flags->max_batch_rows)->check(CLI::Range(1, 1 << 20))->capture_default_str();
  command->add_option("--max-queued-rows", flags->max_queued_rows)
      ->check(CLI::Range(1, 1 << 24))
      ->capture_default_str();
  command->add_option("--batch-window-us", flags->batch_window_us)
      ->check(CLI::Range(0, 1'000'000))
      ->capture_default_str();
  command->add_option("--buffer-mib", flags->buffer_mib)->check(CLI::Range(1, 1 << 22))->capture_default_str();
  command->add_option("--row-bytes", flags->row_bytes, "Of a row's input and output")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--tenant-weights", flags->tenant_weights, "NAME=WEIGHT,...");
  command->callback([flags, exit_code] {
    const absl::Status status = Simulate(*flags);
    *exit_code = status.ok() ? kExitOk : kExitUsage;
    if (!status.ok()) std::fprintf(stderr, "expertd: %s\n", std::string(status.message()).c_str());
  });
}

}  // namespace expertd
