// forecast_bench: how well `expertd simulate` foretells a server.
//
// Starts `expertd serve --device null` with a device of fixed cost, fits a cost model to answers at 40 % load, and then
// sends it traces that it has not seen, at 70, 90 and 120 % of the capacity that the model gives, beside what the
// simulator says of the same traces. Poisson arrivals of 1 to 8 rows, all with the same deadline.
//
//   forecast_bench [--batch-us N] [--row-us N] [--max-batch-rows N] [--deadline-ms N] [--seconds X]
#include <CLI/CLI.hpp>
#include <cmath>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/layers.h"
#include "server/scheduler/simulator.h"
#include "tests/bench/server/bench_support.h"
#include "tests/bench/server/open_loop.h"
#include "tests/integration/server_process.h"

namespace expertd::bench {
namespace {

constexpr std::int64_t kMaxRows = 8;
constexpr double kMeanRows = (1 + kMaxRows) / 2.0;

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  std::int64_t batch_us = 6000;
  std::int64_t row_us = 250;
  std::int64_t max_batch_rows = 64;
  int deadline_ms = 100;
  double seconds = 5;
};

std::vector<TraceRequest> TraceOf(const Schedule& schedule, std::chrono::milliseconds deadline) {
  std::vector<TraceRequest> trace;
  for (const Shot& shot : schedule) trace.push_back({.at = shot.at, .rows = shot.rows, .timeout = deadline});
  return trace;
}

void PrintRow(double load, const char* what, double foretold, double measured, const char* unit) {
  absl::PrintF("%5.0f %%  %-10s %12.2f %12.2f %-4s %+7.1f %%\n", load, what, foretold, measured, unit,
               100 * (foretold / measured - 1));
  std::fflush(stdout);
}

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  const auto server = testing::ServerProcess::Start(
      flags.bin_dir,
      {"--checkpoint", checkpoint, "--device", "null", "--null-batch-us", absl::StrCat(flags.batch_us), "--null-row-ns",
       absl::StrCat(flags.row_us * 1000), "--max-batch-rows", absl::StrCat(flags.max_batch_rows)});
  if (!server.ok()) return server.status();
  const auto client = client::Client::Connect({.endpoint = (*server)->address(), .connections = 4});
  if (!client.ok()) return client.status();
  const auto layer = client::ChooseLayer(**client, {});
  if (!layer.ok()) return layer.status();
  std::vector<client::Request> requests;
  for (std::int64_t rows = 1; rows <= kMaxRows; ++rows) {
    requests.push_back(client::RandomRequest(*layer, rows, /*pre_routed=*/false, /*seed=*/1));
  }
  const std::chrono::milliseconds duration(static_cast<std::int64_t>(flags.seconds * 1000));
  const std::chrono::milliseconds deadline(flags.deadline_ms);
  const auto run = [&](const Schedule& schedule) {
    return RunOpen(
        **client,
        [&](std::int64_t rows) -> const client::Request& { return requests[static_cast<std::size_t>(rows - 1)]; },
        schedule, deadline);
  };

  const CostModel nominal = {static_cast<double>(flags.batch_us) * 1e-6, static_cast<double>(flags.row_us) * 1e-6, 0};
  const double nominal_rate = Capacity(nominal, flags.max_batch_rows, 1) / kMeanRows;
  const OpenResult light = run(Poisson(0.4 * nominal_rate, duration, kMaxRows, /*seed=*/1));
  SimulatedServer twin;
  twin.cost = FitCost(light.batches, static_cast<double>(light.overhead.Percentile(0.5)) * 1e-9);
  twin.limits.max_rows = flags.max_batch_rows;
  twin.row_bytes = 2 * 2 * layer->hidden_size();
  const double rate = Capacity(twin.cost, flags.max_batch_rows, 1) / kMeanRows;
  absl::PrintF(
      "device %d us + %d us a row; fitted at 40 %% load: %.0f us + %.1f us a row, overhead %.0f us, %.0f req/s\n",
      flags.batch_us, flags.row_us, twin.cost.batch_seconds * 1e6, twin.cost.row_seconds * 1e6,
      twin.cost.overhead_seconds * 1e6, rate);
  absl::PrintF("%7s  %-10s %12s %12s\n", "load", "", "foretold", "measured");
  for (const double load : {70.0, 90.0, 120.0}) {
    const Schedule schedule = Poisson(load / 100 * rate, duration, kMaxRows, /*seed=*/static_cast<std::uint64_t>(load));
    const std::vector<TraceRequest> trace = TraceOf(schedule, deadline);
    const Forecast forecast = Summarise(trace, Simulate(twin, trace));
    const OpenResult measured = run(schedule);
    PrintRow(load, "p50", forecast.p50 * 1e3, static_cast<double>(measured.accepted.Percentile(0.5)) * 1e-6, "ms");
    PrintRow(load, "p99", forecast.p99 * 1e3, static_cast<double>(measured.accepted.Percentile(0.99)) * 1e-6, "ms");
    PrintRow(load, "goodput", forecast.goodput, measured.goodput(), "/s");
    absl::PrintF("         (the generator was late by %.2f ms at its p99)\n",
                 static_cast<double>(measured.lateness.Percentile(0.99)) * 1e-6);
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("What the simulator foretells, beside what a server does.");
  app.add_option("--bin-dir", flags.bin_dir, "Where expertd is")->capture_default_str();
  app.add_option("--batch-us", flags.batch_us, "What a batch takes")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--row-us", flags.row_us, "And each of its rows")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  app.add_option("--max-batch-rows", flags.max_batch_rows)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--deadline-ms", flags.deadline_ms, "Of every request")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds, "Length of each run")->check(CLI::PositiveNumber)->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return RunOnTinyCheckpoint("forecast_bench", flags.bin_dir,
                             [&](const std::string& checkpoint) { return Run(flags, checkpoint); });
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
