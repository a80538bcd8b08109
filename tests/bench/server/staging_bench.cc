// staging_bench: what it is worth that the rows of large requests lie on the device when their batch begins.
//
// Two servers on one device, one with --stage-batches-ahead N and one with 0, take the same closed loop in turns, pair
// after pair: rows per second, latency, where the time went, and how rows came to the device.
//
//   staging_bench [--like PRESET] [--device D] [--rows N...] [--callers N...] [--ahead N] [--pairs N] [--seconds X]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <array>
#include <cstdio>
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
#include "tests/integration/raw_call.h"
#include "tests/integration/server_process.h"

namespace expertd::bench {
namespace {

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  std::string like = "olmoe";
  std::string device = "cuda:0";
  std::vector<std::int64_t> rows = {512};
  std::vector<int> callers = {8};
  int ahead = 2;
  int pairs = 5;
  double seconds = 0.5;
};

// A server and what was measured of it.
struct Side {
  std::string name;
  std::unique_ptr<testing::ServerProcess> server;
  std::unique_ptr<client::Client> client;
  std::vector<Closed> runs;

  double RowsThatCame(const char* how) const {
    const std::string text = testing::HttpGet(server->metrics_address(), "/metrics");
    return testing::MetricValue(text, absl::StrFormat("expertd_engine_staged_rows_total{how=\"%s\"}", how)).value_or(0);
  }
};

absl::StatusOr<Side> Start(const Flags& flags, const std::string& checkpoint, int ahead) {
  auto server = testing::ServerProcess::Start(
      flags.bin_dir,
      {"--checkpoint", checkpoint, "--device", flags.device, "--stage-batches-ahead", absl::StrCat(ahead)},
      std::chrono::minutes(5));
  if (!server.ok()) return server.status();
  auto client = client::Client::Connect(
      {.endpoint = (*server)->address(), .connections = *std::max_element(flags.callers.begin(), flags.callers.end())});
  if (!client.ok()) return client.status();
  return Side{absl::StrCat(ahead, " ahead"), *std::move(server), *std::move(client), {}};
}

template <class Of>
double Median(const std::vector<Closed>& runs, Of of) {
  std::vector<double> values;
  for (const Closed& run : runs) values.push_back(of(run));
  return Quantile(values, 0.5);
}

absl::Status Measure(const Flags& flags, std::int64_t rows, int callers, std::array<Side, 2>& sides) {
  std::vector<double> ratios;
  std::array<std::array<double, 2>, 2> before;
  for (std::size_t i = 0; i < sides.size(); ++i) {
    sides[i].runs.clear();
    before[i] = {sides[i].RowsThatCame("arrival"), sides[i].RowsThatCame("batch")};
  }
  const auto layer = client::ChooseLayer(*sides[0].client, {});
  if (!layer.ok()) return layer.status();
  const client::Request request = client::RandomRequest(*layer, rows, /*pre_routed=*/false, /*seed=*/1);
  for (int pair = 0; pair < flags.pairs; ++pair) {
    for (Side& side : sides) {
      auto run = ClosedLoop(*side.client, request, callers)
                     .Run(std::chrono::milliseconds(static_cast<std::int64_t>(flags.seconds * 1000)));
      if (!run.ok()) return run.status();
      side.runs.push_back(*std::move(run));
    }
    ratios.push_back(sides[0].runs.back().rows_per_second / sides[1].runs.back().rows_per_second);
  }
  absl::PrintF("%d callers x %d rows: rows/s %.1f %% (quartiles %.1f to %.1f)\n", callers, rows,
               100 * Quantile(ratios, 0.5), 100 * Quantile(ratios, 0.25), 100 * Quantile(ratios, 0.75));
  for (std::size_t i = 0; i < sides.size(); ++i) {
    const Side& side = sides[i];
    const double arrival = side.RowsThatCame("arrival") - before[i][0],
                 batch = side.RowsThatCame("batch") - before[i][1];
    absl::PrintF("  %s: %.0f rows/s, p50 %.0f us, p99 %.0f us; %.1f %% of rows on arrival; p50 of stages, us: %s\n",
                 side.name, Median(side.runs, [](const Closed& run) { return run.rows_per_second; }),
                 Median(side.runs, [](const Closed& run) { return Us(run.latency.Percentile(0.5)); }),
                 Median(side.runs, [](const Closed& run) { return Us(run.latency.Percentile(0.99)); }),
                 100 * arrival / std::max(1.0, arrival + batch), StagesOf(side.runs.back()));
  }
  return absl::OkStatus();
}

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  absl::StatusOr<Side> with = Start(flags, checkpoint, flags.ahead);
  if (!with.ok()) return with.status();
  absl::StatusOr<Side> without = Start(flags, checkpoint, 0);
  if (!without.ok()) return without.status();
  std::array<Side, 2> sides = {*std::move(with), *std::move(without)};
  absl::PrintF("%s on %s\n", flags.like, flags.device);
  for (const std::int64_t rows : flags.rows) {
    for (const int callers : flags.callers) {
      if (absl::Status status = Measure(flags, rows, callers, sides); !status.ok()) return status;
      std::fflush(stdout);
    }
  }
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Rows of large requests on the device ahead of their batch, and with it.");
  app.add_option("--bin-dir", flags.bin_dir, "Where expertd is")->capture_default_str();
  app.add_option("--like", flags.like, "Shape of a layer of random weights, as `expertd synth` knows them")
      ->capture_default_str();
  app.add_option("--device", flags.device)->capture_default_str();
  app.add_option("--rows", flags.rows, "Rows of a request")->check(CLI::Range(1, 8192))->capture_default_str();
  app.add_option("--callers", flags.callers)->check(CLI::Range(1, 64))->capture_default_str();
  app.add_option("--ahead", flags.ahead, "Batches")->check(CLI::Range(1, 16))->capture_default_str();
  app.add_option("--pairs", flags.pairs)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--seconds", flags.seconds, "Length of each measurement")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return RunOnSynth("staging_bench", flags.bin_dir, {"--like", flags.like},
                    [&](const std::string& checkpoint) { return Run(flags, checkpoint); });
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
