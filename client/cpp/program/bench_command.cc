#include <cstdio>
#include <fstream>
#include <memory>

#include "client/cpp/program/commands.h"
#include "client/cpp/program/layers.h"
#include "client/cpp/program/report.h"

namespace expertd::client {
namespace {

struct BenchFlags {
  ClientOptions client;
  LayerChoice layer;
  LoadOptions load;
  std::string mode = "stream";
  double warmup_s = 2;
  double duration_s = 10;
  int timeout_ms = 30000;
  bool check = false;
  int check_samples = 64;
  std::string json;
};

std::chrono::milliseconds Seconds(double seconds) {
  return std::chrono::milliseconds(static_cast<std::int64_t>(seconds * 1000));
}

int Bench(BenchFlags flags) {
  flags.load.mode = flags.mode == "stream" ? Mode::kStream : Mode::kUnary;
  flags.load.warmup = Seconds(flags.warmup_s);
  flags.load.duration = Seconds(flags.duration_s);
  flags.load.timeout = std::chrono::milliseconds(flags.timeout_ms);
  flags.load.samples = flags.check ? flags.check_samples : 0;
  const auto client = Client::Connect(flags.client);
  if (!client.ok()) return Complain(client.status(), kExitUnreachable);
  const auto layer = ChooseLayer(**client, flags.layer);
  if (!layer.ok()) return Complain(layer.status(), kExitFailed);

  BenchReport report{.endpoint = flags.client.endpoint,
                     .server = (*client)->info(),
                     .layer = *layer,
                     .connections = flags.client.connections,
                     .options = flags.load};
  auto load = RunLoad(**client, *layer, flags.load);
  if (!load.ok()) return Complain(load.status(), kExitUsage);
  report.load = *std::move(load);
  if (flags.check) {
    auto check = CheckSamples(**client, report.load);
    if (!check.ok()) return Complain(check.status(), kExitFailed);
    report.check = *std::move(check);
  }
  std::fputs(FormatTable(report).c_str(), stdout);
  if (!flags.json.empty()) {
    std::ofstream file(flags.json);
    file << FormatJson(report);
    if (!file.flush()) return Complain(absl::InvalidArgumentError("--json: cannot write " + flags.json), kExitUsage);
  }
  return report.Passed() ? kExitOk : kExitFailed;
}

}  // namespace

void AddBenchCommand(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* bench = app.add_subcommand("bench", "Load-test a layer in a closed loop and print what was measured");
  AddEndpointOption(*bench, flags->client.endpoint);
  bench->add_option("--model", flags->layer.model, "Model of the layer (default: the first the server lists)");
  bench->add_option("--layer", flags->layer.layer, "Index of the layer (default: the first)");
  bench->add_option("--connections", flags->client.connections, "TCP connections")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  bench->add_option("--concurrency", flags->load.concurrency, "Requests in flight over all connections")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  bench->add_option("--rows", flags->load.rows, "Rows of each request")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  bench->add_option("--mode", flags->mode, "One stream a connection, or unary calls")
      ->check(CLI::IsMember({"stream", "unary"}))
      ->capture_default_str();
  bench->add_flag("--pre-routed", flags->load.pre_routed, "Send random expert ids and weights with the rows");
  CLI::Option* duration = bench->add_option("--duration-s", flags->duration_s, "Length of the window")
                              ->check(CLI::Range(0.01, 1e6))
                              ->capture_default_str();
  bench->add_option("--requests", flags->load.requests, "Answers to measure, instead of --duration-s")
      ->check(CLI::PositiveNumber)
      ->excludes(duration);
  bench->add_option("--warmup-s", flags->warmup_s, "Load before the window")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  bench->add_option("--timeout-ms", flags->timeout_ms, "Of each request")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  bench->add_option("--seed", flags->load.seed, "Of the random rows")->capture_default_str();
  bench->add_flag("--check", flags->check,
                  "Keep a sample of answers and afterwards send those rows again alone: the bits must be equal");
  bench->add_option("--check-samples", flags->check_samples, "Answers that --check keeps")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  bench->add_option("--json", flags->json, "Also write the report to this file");
  bench->callback([flags, exit_code] { *exit_code = Bench(*flags); });
}

}  // namespace expertd::client
