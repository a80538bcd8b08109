// serving_bench: what a layer costs when it is served, on a real engine.
//
//   alone    one caller with one request in flight on a stream: p50 from sending to the answer, and of that everything
//            but the layer's own compute (route, gemm and combine, as each answer says), beside a bare gRPC echo of
//            the same bytes
//   merging  --callers callers of --rows rows each against one caller with all of those rows in one request: rows per
//            second, pair after pair, and how the callers' requests shared batches
//   tail     an open loop with Poisson arrivals on streams: a ladder of rates up to the knee (the highest of which 99 %
//            were answered in time: five times the p50 alone, at least 1 ms), then p50 and p99 at 70 % of it
//
//   serving_bench [--like PRESET | --checkpoint DIR] [--device D] [--rows N] [--pre-routed] [--callers N] [--pairs N]
//                 [--seconds X] [-- FLAGS OF THE SERVER]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/layers.h"
#include "tests/bench/server/bench_support.h"
#include "tests/bench/server/closed_loop.h"
#include "tests/bench/server/open_loop.h"
#include "tests/bench/server/raw_loop.h"
#include "tests/integration/process.h"
#include "tests/integration/server_process.h"

namespace expertd::bench {
namespace {

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  std::string like = "olmoe";
  std::string checkpoint;
  std::string device = "cpu";
  std::int64_t rows = 16;
  bool pre_routed = false;
  int callers = 8;
  int pairs = 5;
  double seconds = 1;
  std::vector<std::string> server_flags;

  std::chrono::milliseconds window() const {
    return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
  }
};

struct Bench {
  const Flags& flags;
  const client::Client& client;
  const v1::Layer& layer;

  client::Request Rows(std::int64_t rows) const {
    return client::RandomRequest(layer, rows, flags.pre_routed, /*seed=*/1);
  }

  absl::StatusOr<Closed> Run(std::int64_t rows, int callers) const {
    const client::Request request = Rows(rows);
    return ClosedLoop(client, request, callers).Run(flags.window());
  }

  // What gRPC alone takes here: the p50 of a stream that sends the same rows back, in microseconds.
  absl::StatusOr<double> Echo() const {
    const auto echo = testing::Process::Start({flags.bin_dir + "/wire_echo"});
    if (!echo.ok()) return echo.status();
    const auto address = (*echo)->WaitForLine("listening on ", std::chrono::seconds(10));
    if (!address.has_value()) return absl::InternalError("wire_echo did not start");
    const auto result = RunRaw(Connect(*address, 1), Rows(flags.rows),
                               {.in_flight = 1, .warmup = flags.window() / 5, .window = flags.window()});
    if (!result.ok()) return result.status();
    return Us(result->latency.Percentile(0.5));
  }

  // Returns the p50 in microseconds.
  absl::StatusOr<double> Alone() const {
    const absl::StatusOr<double> echo = Echo();
    if (!echo.ok()) return echo.status();
    const absl::StatusOr<Closed> one = Run(flags.rows, 1);
    if (!one.ok()) return one.status();
    const double p50 = Us(one->latency.Percentile(0.5));
    absl::PrintF(
        "alone: %d rows, p50 %.1f us, p99 %.1f us; beside the layer's compute p50 %.1f us, a bare echo %.1f us\n",
        flags.rows, p50, Us(one->latency.Percentile(0.99)), Us(one->beside.Percentile(0.5)), *echo);
    absl::PrintF("  p50 of its stages, us: %s\n", StagesOf(*one));
    return p50;
  }

  absl::Status Merging() const {
    std::vector<double> ratios, apart, together;
    std::map<std::int64_t, std::int64_t> batches;
    for (int i = 0; i < flags.pairs; ++i) {
      const auto many = Run(flags.rows, flags.callers);
      if (!many.ok()) return many.status();
      const auto one = Run(flags.rows * flags.callers, 1);
      if (!one.ok()) return one.status();
      apart.push_back(many->rows_per_second);
      together.push_back(one->rows_per_second);
      ratios.push_back(many->rows_per_second / one->rows_per_second);
      for (const auto& [rows, requests] : many->batches) batches[rows] += requests;
    }
    absl::PrintF(
        "merging: %d callers x %d rows %.0f rows/s, one caller x %d rows %.0f rows/s: %.1f %% (quartiles %.1f to "
        "%.1f)\n",
        flags.callers, flags.rows, Quantile(apart, 0.5), flags.rows * flags.callers, Quantile(together, 0.5),
        100 * Quantile(ratios, 0.5), 100 * Quantile(ratios, 0.25), 100 * Quantile(ratios, 0.75));
    double requests = 0;
    for (const auto& [rows, count] : batches) requests += static_cast<double>(count);
    std::printf("  requests by the rows of their batch:");
    for (const auto& [rows, count] : batches) {
      absl::PrintF(" %d: %.1f %%", rows, 100 * static_cast<double>(count) / requests);
    }
    std::printf("\n");
    return absl::OkStatus();
  }

  absl::Status Tail(double alone_us) const {
    const auto limit = std::chrono::milliseconds(std::max<std::int64_t>(1, static_cast<std::int64_t>(alone_us / 200)));
    const absl::StatusOr<Closed> full = Run(flags.rows, flags.callers);
    if (!full.ok()) return full.status();
    const double capacity = full->rows_per_second / static_cast<double>(flags.rows);
    const client::Request request = Rows(flags.rows);
    std::uint64_t seed = 1;
    const auto open = [&](double rate) {
      return RunOpen(
          client, [&](std::int64_t) -> const client::Request& { return request; },
          Poisson(rate, 2 * flags.window(), 1, seed++), limit);
    };
    double knee = 0;
    for (const double share : {0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0}) {
      const OpenResult result = open(share * capacity);
      if (static_cast<double>(result.good) >= 0.99 * static_cast<double>(result.sent)) knee = share * capacity;
    }
    if (knee == 0) return absl::InternalError("no rate was served in time: the machine is too busy to measure this");
    const OpenResult result = open(0.7 * knee);
    const double p50 = Us(result.accepted.Percentile(0.5)), p99 = Us(result.accepted.Percentile(0.99));
    absl::PrintF(
        "tail: knee %.0f requests/s (%.0f in a closed loop; %d ms limit); at 70 %% of it p50 %.0f us, p99 %.0f us, "
        "p99/p50 %.2f; sent within %.0f us of the schedule (p99)\n",
        knee, capacity, limit.count(), p50, p99, p99 / p50, Us(result.lateness.Percentile(0.99)));
    return absl::OkStatus();
  }
};

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  std::vector<std::string> arguments = {"--checkpoint", checkpoint, "--layers", "0", "--device", flags.device};
  arguments.insert(arguments.end(), flags.server_flags.begin(), flags.server_flags.end());
  const auto server = testing::ServerProcess::Start(flags.bin_dir, arguments, std::chrono::minutes(5));
  if (!server.ok()) return server.status();
  const auto client = client::Client::Connect({.endpoint = (*server)->address(), .connections = flags.callers});
  if (!client.ok()) return client.status();
  const auto layer = client::ChooseLayer(**client, {});
  if (!layer.ok()) return layer.status();
  absl::PrintF("%s on %s\n", client::LayerSizes(*layer), flags.device);
  const Bench bench{flags, **client, *layer};
  const absl::StatusOr<double> alone = bench.Alone();
  if (!alone.ok()) return alone.status();
  if (absl::Status status = bench.Merging(); !status.ok()) return status;
  return bench.Tail(*alone);
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("What a layer costs when it is served: alone, by several callers, and near the knee.");
  app.add_option("--bin-dir", flags.bin_dir, "Where expertd is")->capture_default_str();
  app.add_option("--like", flags.like, "Shape of a layer of random weights, as `expertd synth` knows them")
      ->capture_default_str();
  app.add_option("--checkpoint", flags.checkpoint, "Layer 0 of this folder instead");
  app.add_option("--device", flags.device, "cpu, cuda:0 or null")->capture_default_str();
  app.add_option("--rows", flags.rows, "Rows of a request")->check(CLI::Range(1, 1024))->capture_default_str();
  app.add_flag("--pre-routed", flags.pre_routed, "The callers choose the experts");
  app.add_option("--callers", flags.callers)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--pairs", flags.pairs)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seconds", flags.seconds, "Length of each measurement")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("server_flags", flags.server_flags, "Behind `--`: more of the server's flags");
  CLI11_PARSE(app, argc, argv);
  const auto run = [&](const std::string& checkpoint) { return Run(flags, checkpoint); };
  if (flags.checkpoint.empty()) return RunOnSynth("serving_bench", flags.bin_dir, {"--like", flags.like}, run);
  const absl::Status status = run(flags.checkpoint);
  if (!status.ok()) std::fprintf(stderr, "serving_bench: %s\n", status.ToString().c_str());
  return status.ok() ? 0 : 1;
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
