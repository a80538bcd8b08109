#include "client/cpp/program/bench_flags.h"

#include <CLI/CLI.hpp>

#include "absl/strings/strip.h"
#include "client/cpp/program/commands.h"

namespace expertd::client {
namespace {

constexpr char kLoad[] = "Load", kRequests[] = "Requests", kWindows[] = "Windows", kSweep[] = "Sweep",
               kReport[] = "Report";
// A sweep over the rate starts low and stops at what one machine can send; one over concurrency at gRPC's habits.
constexpr double kRateFrom = 50, kRateTo = 1e6, kConcurrencyFrom = 1, kConcurrencyTo = 4096;

std::chrono::milliseconds Seconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

void AddLoadFlags(CLI::App& bench, BenchFlags& flags) {
  bench.add_option("--connections", flags.client.connections, "TCP connections")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str()
      ->group(kLoad);
  bench.add_option("--mode", flags.mode, "One stream a connection, or unary calls")
      ->check(CLI::IsMember({"stream", "unary"}))
      ->capture_default_str()
      ->group(kLoad);
  CLI::Option* concurrency =
      bench.add_option("--concurrency", flags.concurrency, "Closed loop: requests (or decode steps) in flight")
          ->check(CLI::Range(1, 65536))
          ->capture_default_str()
          ->group(kLoad);
  bench
      .add_option("--rate", flags.rate, "Open loop: requests (or decode steps) a second; latency counts from schedule")
      ->check(CLI::Range(1e-3, 1e7))
      ->excludes(concurrency)
      ->group(kLoad);
  bench.add_option("--arrivals", flags.arrivals, "Open loop: poisson, constant or trace:FILE (CSV: seconds,rows)")
      ->capture_default_str()
      ->group(kLoad);
  bench
      .add_option("--max-in-flight", flags.max_in_flight,
                  "Open loop: unanswered at most (default: what the server takes)")
      ->check(CLI::Range(1, 65536))
      ->group(kLoad);
}

void AddRequestFlags(CLI::App& bench, BenchFlags& flags) {
  bench.add_option("--model", flags.layer.model, "Model of the layer (default: the first the server lists)")
      ->group(kRequests);
  CLI::Option* layer =
      bench.add_option("--layer", flags.layer.layer, "Index of the layer (default: the first)")->group(kRequests);
  bench.add_option("--layers", flags.layers, "A decode step: these layers in sequence, \"all\" or \"0-3,7\"")
      ->excludes(layer)
      ->group(kRequests);
  bench
      .add_option("--rows", flags.rows,
                  "Of each request: N, uniform:LOW..HIGH, zipf:LOW..HIGH[:EXPONENT] or trace:FILE")
      ->capture_default_str()
      ->group(kRequests);
  CLI::Option* routing =
      bench.add_option("--routing", flags.routing, "Who chooses experts: server, or here: uniform, zipf:EXPONENT")
          ->capture_default_str()
          ->group(kRequests);
  bench.add_flag("--pre-routed", flags.pre_routed, "The same as --routing uniform")
      ->excludes(routing)
      ->group(kRequests);
  bench.add_option("--timeout-ms", flags.timeout_ms, "Of each request (or decode step), from its schedule on")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kRequests);
  bench.add_option("--seed", flags.seed, "Of rows, routing and arrivals")->capture_default_str()->group(kRequests);
}

void AddWindowFlags(CLI::App& bench, BenchFlags& flags) {
  bench.add_option("--warmup-s", flags.warmup_s, "Load before the first window")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group(kWindows);
  CLI::Option* duration = bench.add_option("--duration-s", flags.duration_s, "Length of each window")
                              ->check(CLI::Range(0.01, 1e6))
                              ->capture_default_str()
                              ->group(kWindows);
  CLI::Option* windows =
      bench.add_option("--windows", flags.windows, "Windows, one after the other: their spread gives a confidence")
          ->check(CLI::Range(1, 1000))
          ->capture_default_str()
          ->group(kWindows);
  bench.add_option("--requests", flags.requests, "Closed loop: answers to measure, instead of --duration-s")
      ->check(CLI::PositiveNumber)
      ->excludes(duration)
      ->excludes(windows)
      ->excludes("--rate")
      ->group(kWindows);
}

void AddSweepFlags(CLI::App& bench, BenchFlags& flags) {
  CLI::Option* sweep = bench.add_option("--sweep", flags.sweep, "Look for the knee over: concurrency or rate")
                           ->check(CLI::IsMember({"concurrency", "rate"}))
                           ->excludes("--requests")
                           ->group(kSweep);
  bench.add_option("--slo", flags.slo, "What the knee has to hold: p99=2ms, or p99.9=5ms,errors=0.5%")
      ->needs(sweep)
      ->group(kSweep);
  bench.add_option("--sweep-from", flags.sweep_from, "First load (default: 1 in flight, or 50 /s)")
      ->check(CLI::Range(1e-3, 1e7))
      ->needs(sweep)
      ->group(kSweep);
  bench.add_option("--sweep-to", flags.sweep_to, "Highest load (default: 4096 in flight, or 1000000 /s)")
      ->check(CLI::Range(1e-3, 1e7))
      ->needs(sweep)
      ->group(kSweep);
  bench.add_option("--sweep-refinements", flags.refinements, "Loads tried between the last that holds and the next")
      ->check(CLI::Range(0, 100))
      ->capture_default_str()
      ->needs(sweep)
      ->group(kSweep);
}

void AddReportFlags(CLI::App& bench, BenchFlags& flags) {
  bench.add_option("--metrics", flags.metrics, "The server's metrics endpoint, http://HOST:PORT: joins its stages")
      ->group(kReport);
  bench
      .add_flag("--check", flags.check,
                "Keep a sample of answers and afterwards send those rows again alone: the bits must be equal")
      ->group(kReport);
  bench.add_option("--check-samples", flags.check_samples, "Answers that --check keeps")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str()
      ->group(kReport);
  bench.add_option("--json", flags.json, "Also write the report to this file")->group(kReport);
  bench.add_option("--csv", flags.csv, "A line for each load and window")->group(kReport);
  bench.add_option("--histogram", flags.histogram, "Latency percentiles as HdrHistogram writes them")->group(kReport);
  bench.add_option("--html", flags.html, "The report as one page with charts")->group(kReport);
}

absl::Status ParseArrivals(const BenchFlags& flags, LoadOptions& load) {
  absl::string_view file = flags.arrivals;
  if (flags.arrivals == "poisson" || flags.arrivals == "constant") {
    load.arrivals = flags.arrivals == "poisson" ? ArrivalKind::kPoisson : ArrivalKind::kConstant;
    return absl::OkStatus();
  }
  if (!absl::ConsumePrefix(&file, "trace:")) {
    return absl::InvalidArgumentError("--arrivals: " + flags.arrivals + " is not poisson, constant or trace:FILE");
  }
  load.arrivals = ArrivalKind::kTrace;
  auto trace = ReadTrace(std::string(file));
  if (!trace.ok()) return trace.status();
  load.trace = *std::move(trace);
  return absl::OkStatus();
}

absl::StatusOr<SweepPlan> MakeSweep(const BenchFlags& flags) {
  const bool rate = flags.sweep == "rate";
  SweepPlan plan{.from = rate ? kRateFrom : kConcurrencyFrom,
                 .to = rate ? kRateTo : kConcurrencyTo,
                 .refinements = flags.refinements,
                 .whole = !rate,
                 .has_slo = !flags.slo.empty()};
  if (flags.sweep_from > 0) plan.from = flags.sweep_from;
  if (flags.sweep_to > 0) plan.to = flags.sweep_to;
  if (plan.from > plan.to || (plan.whole && plan.from < 1)) {
    return absl::InvalidArgumentError("--sweep-from: above --sweep-to, or less than one in flight");
  }
  return plan;
}

}  // namespace

void AddBenchFlags(CLI::App& bench, BenchFlags& flags) {
  AddConnectionFlags(bench, flags.client);
  AddLoadFlags(bench, flags);
  AddRequestFlags(bench, flags);
  AddWindowFlags(bench, flags);
  AddSweepFlags(bench, flags);
  AddReportFlags(bench, flags);
}

absl::StatusOr<Campaign> MakeCampaign(const BenchFlags& flags) {
  Campaign campaign;
  LoadOptions& load = campaign.load;
  load.mode = flags.mode == "stream" ? Mode::kStream : Mode::kUnary;
  load.concurrency = flags.concurrency;
  load.max_in_flight = flags.max_in_flight;
  load.warmup = Seconds(flags.warmup_s);
  load.duration = Seconds(flags.duration_s);
  load.windows = flags.windows;
  load.requests = flags.requests;
  load.timeout = std::chrono::milliseconds(flags.timeout_ms);
  load.seed = flags.seed;
  load.samples = flags.check ? flags.check_samples : 0;
  auto rows = RowCounts::Parse(flags.rows);
  if (!rows.ok()) return rows.status();
  load.rows = *std::move(rows);
  auto skew = ParseRouting(flags.pre_routed ? "uniform" : flags.routing);
  if (!skew.ok()) return skew.status();
  campaign.skew = *skew;
  if (const absl::Status status = ParseArrivals(flags, load); !status.ok()) return status;
  load.rate = flags.rate;
  if (!flags.slo.empty()) {
    auto slo = ParseSlo(flags.slo);
    if (!slo.ok()) return slo.status();
    campaign.slo = *std::move(slo);
  }
  if (!flags.sweep.empty()) {
    auto sweep = MakeSweep(flags);
    if (!sweep.ok()) return sweep.status();
    campaign.sweep = *sweep;
    if (flags.sweep == "rate") load.rate = sweep->from;
    if (flags.sweep == "concurrency" && load.open_loop()) {
      return absl::InvalidArgumentError(
          "--sweep: over concurrency is a closed loop: neither --rate nor a trace of arrivals");
    }
  }
  if (!flags.metrics.empty()) {
    auto url = ParseHttpUrl(flags.metrics);
    if (!url.ok()) return url.status();
    campaign.metrics = *std::move(url);
  }
  return campaign;
}

}  // namespace expertd::client
