// overload_bench: what becomes of a server that is asked for more than its device can do.
//
// Starts `expertd serve --device null` with a device of fixed cost, and sends it Poisson arrivals of one-row requests,
// all with the same deadline, from an open loop: first a ladder of rates to find the knee (the highest rate of which 99
// % were answered in time) and the peak of goodput, then several times the knee, then half of it again. Latencies count
// from the scheduled time; `late p99` is how far behind its schedule the generator sent.
//
//   overload_bench [--batch-us N] [--row-us N] [--max-batch-rows N] [--deadline-ms N] [--factor X] [--seconds X]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/layers.h"
#include "tests/bench/server/bench_support.h"
#include "tests/bench/server/open_loop.h"
#include "tests/integration/server_process.h"

namespace expertd::bench {
namespace {

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  std::int64_t batch_us = 4000;
  std::int64_t row_us = 500;
  std::int64_t max_batch_rows = 8;
  int deadline_ms = 40;
  int connections = 4;
  double factor = 5;
  double seconds = 2;
};

struct Load {
  const client::Client& client;
  const client::Request request;
  const Flags& flags;
  std::uint64_t seed = 1;

  OpenResult Run(double rate) {
    const std::chrono::milliseconds duration(static_cast<std::int64_t>(flags.seconds * 1000));
    return RunOpen(
        client, [this](std::int64_t) -> const client::Request& { return request; }, Poisson(rate, duration, 1, seed++),
        std::chrono::milliseconds(flags.deadline_ms));
  }
};

double Ms(std::int64_t nanoseconds) { return static_cast<double>(nanoseconds) * 1e-6; }

void PrintHeader() {
  absl::PrintF("%-10s %10s %12s %8s %14s %12s %12s\n", "", "offered/s", "goodput/s", "good", "accepted p99",
               "reject p99", "late p99");
}

void Print(const char* name, const OpenResult& result) {
  absl::PrintF("%-10s %10.0f %12.0f %7.1f%% %11.2f ms %9.2f ms %9.2f ms\n", name,
               static_cast<double>(result.sent) / result.seconds, result.goodput(),
               100.0 * static_cast<double>(result.good) / static_cast<double>(result.sent),
               Ms(result.accepted.Percentile(0.99)), Ms(result.rejected.Percentile(0.99)),
               Ms(result.lateness.Percentile(0.99)));
  std::fflush(stdout);
}

// Until when, since the start of the run, some request was not answered in time.
std::chrono::microseconds LastBad(const OpenResult& result) {
  std::chrono::microseconds last{0};
  for (const auto& [at, good] : result.fates) last = std::max(last, good ? last : at);
  return last;
}

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  const auto server = testing::ServerProcess::Start(
      flags.bin_dir,
      {"--checkpoint", checkpoint, "--device", "null", "--null-batch-us", absl::StrCat(flags.batch_us), "--null-row-ns",
       absl::StrCat(flags.row_us * 1000), "--max-batch-rows", absl::StrCat(flags.max_batch_rows)});
  if (!server.ok()) return server.status();
  const auto client = client::Client::Connect({.endpoint = (*server)->address(), .connections = flags.connections});
  if (!client.ok()) return client.status();
  const auto layer = client::ChooseLayer(**client, {});
  if (!layer.ok()) return layer.status();
  Load load{**client, client::RandomRequest(*layer, 1, /*pre_routed=*/false, /*seed=*/1), flags};

  const double rows = static_cast<double>(flags.max_batch_rows);
  const double capacity = rows * 1e6 / static_cast<double>(flags.batch_us + flags.max_batch_rows * flags.row_us);
  absl::PrintF("device: %d us a batch, %d us a row, %d rows at most: %.0f rows/s; deadline %d ms\n", flags.batch_us,
               flags.row_us, flags.max_batch_rows, capacity, flags.deadline_ms);
  PrintHeader();
  load.Run(0.3 * capacity);  // warms up, and teaches admission what a batch takes
  double knee = 0, peak = 0;
  OpenResult at_knee;
  for (const double share : {0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1}) {
    OpenResult result = load.Run(share * capacity);
    Print(absl::StrFormat("%.0f %%", 100 * share).c_str(), result);
    peak = std::max(peak, result.goodput());
    if (static_cast<double>(result.good) < 0.99 * static_cast<double>(result.sent)) continue;
    knee = share * capacity;
    at_knee = std::move(result);
  }
  if (knee == 0) return absl::InternalError("no rate was served in time: the machine is too busy to measure this");
  const OpenResult over = load.Run(flags.factor * knee);
  Print("overload", over);
  const OpenResult after = load.Run(0.5 * knee);
  Print("after", after);

  const double p99_ratio = Ms(over.accepted.Percentile(0.99)) / Ms(at_knee.accepted.Percentile(0.99));
  absl::PrintF(
      "\nknee %.0f/s; at %.1f x: goodput %.1f %% of peak (bar 95), p99 of accepted %.2f x the knee's (bar 2), "
      "rejects p99 %.2f ms (bar 5), last miss %.2f s after (bar 2)\n",
      knee, flags.factor, 100 * over.goodput() / peak, p99_ratio, Ms(over.rejected.Percentile(0.99)),
      std::chrono::duration<double>(LastBad(after)).count());
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Goodput, latency and refusals of a server beyond its knee.");
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
  app.add_option("--connections", flags.connections)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--factor", flags.factor, "Overload, as a multiple of the knee")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--seconds", flags.seconds, "Length of each measurement")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return RunOnTinyCheckpoint("overload_bench", flags.bin_dir,
                             [&](const std::string& checkpoint) { return Run(flags, checkpoint); });
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
