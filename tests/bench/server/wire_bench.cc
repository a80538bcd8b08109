// wire_bench: how much of a bare echo's throughput the whole service reaches around an engine that only copies.
//
// Starts wire_echo and `expertd serve --device null`, and measures them in turns, pair after pair (two runs of the same
// server can differ more than the servers do; the two of a pair share the machine's mood). Prints the median ratio of
// throughputs with its spread, and the difference of the median latencies with one request in flight.
//
//   wire_bench [--pairs N] [--connections N] [--in-flight N] [--window-ms N] [--kib N ...] [--mode M] [--tls]
//              [--json FILE]
#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/layers.h"
#include "tests/bench/server/bench_support.h"
#include "tests/bench/server/raw_loop.h"
#include "tests/integration/server_process.h"
#include "tests/support/certificates.h"

namespace expertd::bench {
namespace {

using testing::Process;
using testing::ServerProcess;

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  int pairs = 7;
  int connections = 1;
  int in_flight = 4;
  int window_ms = 500;
  std::vector<std::int64_t> kib = {16, 256, 2048};
  std::string mode = "both";
  bool tls = false;
  std::string json;
};

// What is measured of one server in one turn.
struct Turn {
  double requests_per_second = 0;
  double p50_us = 0;
};

struct Cell {
  std::int64_t bytes = 0;
  bool stream = true;
  std::vector<Turn> echo, expertd;  // by pair
};

template <class F>
std::vector<double> PerPair(const Cell& cell, F f) {
  std::vector<double> out;
  for (std::size_t i = 0; i < cell.echo.size(); ++i) out.push_back(f(cell.echo[i], cell.expertd[i]));
  return out;
}

absl::StatusOr<Turn> Measure(const Channels& channels, const client::Request& request, bool stream,
                             const Flags& flags) {
  const std::chrono::milliseconds window(flags.window_ms);
  const auto rate = RunRaw(channels, request, {.stream = stream, .in_flight = flags.in_flight, .window = window});
  if (!rate.ok()) return rate.status();
  const auto alone = RunRaw({channels[0]}, request, {.stream = stream, .in_flight = 1, .window = window});
  if (!alone.ok()) return alone.status();
  return Turn{rate->requests_per_second, static_cast<double>(alone->latency.Percentile(0.5)) / 1000};
}

absl::Status MeasurePair(const Channels& echo, const Channels& expertd, const client::Request& request,
                         const Flags& flags, Cell& cell) {
  const bool echo_first = cell.echo.size() % 2 == 0;
  for (const bool is_echo : {echo_first, !echo_first}) {
    const auto turn = Measure(is_echo ? echo : expertd, request, cell.stream, flags);
    if (!turn.ok())
      return absl::Status(turn.status().code(),
                          absl::StrCat(is_echo ? "echo: " : "expertd: ", turn.status().message()));
    (is_echo ? cell.echo : cell.expertd).push_back(*turn);
  }
  return absl::OkStatus();
}

// The null engine gives the rows back: a wrong answer would make the numbers worthless.
absl::Status CheckAnswer(const client::Client& client, const client::Request& request) {
  const auto answer = client.Forward(request, std::chrono::seconds(10));
  if (!answer.ok()) return answer.status();
  const absl::string_view sent(reinterpret_cast<const char*>(request.hidden_states.begin()),
                               request.hidden_states.size());
  if (answer->OutputString() != sent)
    return absl::InternalError("the null engine's answer is not the rows that were sent");
  return absl::OkStatus();
}

void PrintHeader() {
  absl::PrintF("%8s %-7s %12s %12s %8s  %-17s %12s %12s %10s\n", "KiB", "mode", "echo req/s", "expertd", "ratio",
               "quartiles", "echo p50 us", "expertd", "difference");
}

nlohmann::ordered_json Report(const Cell& cell) {
  const auto ratios = PerPair(
      cell, [](const Turn& echo, const Turn& own) { return own.requests_per_second / echo.requests_per_second; });
  const auto differences = PerPair(cell, [](const Turn& echo, const Turn& own) { return own.p50_us - echo.p50_us; });
  const auto median = [&](auto f) { return Quantile(PerPair(cell, f), 0.5); };
  const double echo_rate = median([](const Turn& echo, const Turn&) { return echo.requests_per_second; });
  const double own_rate = median([](const Turn&, const Turn& own) { return own.requests_per_second; });
  const double echo_p50 = median([](const Turn& echo, const Turn&) { return echo.p50_us; });
  const double own_p50 = median([](const Turn&, const Turn& own) { return own.p50_us; });
  const char* mode = cell.stream ? "stream" : "unary";
  absl::PrintF("%8d %-7s %12.0f %12.0f %7.1f%%  %5.1f%% to %5.1f%% %12.1f %12.1f %10.1f\n", cell.bytes >> 10, mode,
               echo_rate, own_rate, 100 * Quantile(ratios, 0.5), 100 * Quantile(ratios, 0.25),
               100 * Quantile(ratios, 0.75), echo_p50, own_p50, Quantile(differences, 0.5));
  std::fflush(stdout);
  return {{"bytes", cell.bytes},
          {"mode", mode},
          {"pairs", cell.echo.size()},
          {"echo_requests_per_second", echo_rate},
          {"expertd_requests_per_second", own_rate},
          {"ratio_median", Quantile(ratios, 0.5)},
          {"ratio_quartiles", {Quantile(ratios, 0.25), Quantile(ratios, 0.75)}},
          {"ratio_range", {Quantile(ratios, 0), Quantile(ratios, 1)}},
          {"echo_p50_us", echo_p50},
          {"expertd_p50_us", own_p50},
          {"p50_difference_us", Quantile(differences, 0.5)}};
}

// A certificate of its own for each run, in files for the servers and as credentials for who calls them.
struct Tls {
  testing::TestFolder folder;
  testing::TestAuthority authority{"wire_bench"};
  std::string cert, key;

  Tls() {
    const testing::TestIdentity identity = authority.IssueForThisMachine();
    cert = folder.Write("cert.pem", identity.cert);
    key = folder.Write("key.pem", identity.key);
  }
  std::shared_ptr<grpc::ChannelCredentials> credentials() const {
    return grpc::SslCredentials({.pem_root_certs = authority.cert(), .pem_private_key = {}, .pem_cert_chain = {}});
  }
};

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  std::optional<Tls> tls;
  std::vector<std::string> echo_command = {flags.bin_dir + "/wire_echo"};
  std::vector<std::string> server_flags = {"--checkpoint", checkpoint, "--device", "null"};
  std::shared_ptr<grpc::ChannelCredentials> credentials;  // null: plaintext
  if (flags.tls) {
    tls.emplace();
    credentials = tls->credentials();
    echo_command.insert(echo_command.end(), {tls->cert, tls->key});
    server_flags.insert(server_flags.end(), {"--tls-cert", tls->cert, "--tls-key", tls->key});
  }
  auto echo = Process::Start(echo_command);
  if (!echo.ok()) return echo.status();
  const auto echo_address = (*echo)->WaitForLine("listening on ", std::chrono::seconds(10));
  if (!echo_address.has_value()) return absl::InternalError("wire_echo did not start");
  auto expertd = ServerProcess::Start(flags.bin_dir, server_flags);
  if (!expertd.ok()) return expertd.status();

  const auto client = client::Client::Connect({.endpoint = (*expertd)->address(), .credentials = credentials});
  if (!client.ok()) return client.status();
  const auto layer = client::ChooseLayer(**client, {});
  if (!layer.ok()) return layer.status();
  const Channels echo_channels = Connect(*echo_address, flags.connections, credentials);
  const Channels channels = Connect((*expertd)->address(), flags.connections, credentials);

  nlohmann::ordered_json json = {{"pairs", flags.pairs},
                                 {"connections", flags.connections},
                                 {"in_flight_per_connection", flags.in_flight},
                                 {"window_ms", flags.window_ms},
                                 {"tls", flags.tls}};
  PrintHeader();
  for (const std::int64_t kib : flags.kib) {
    const std::int64_t bytes = kib << 10;
    const std::int64_t row_bytes = layer->hidden_size() * 2;
    const client::Request request = client::RandomRequest(*layer, bytes / row_bytes, /*pre_routed=*/false, /*seed=*/1);
    if (const absl::Status status = CheckAnswer(**client, request); !status.ok()) return status;
    for (const bool stream : {false, true}) {
      if (flags.mode == (stream ? "unary" : "stream")) continue;
      Cell cell{.bytes = bytes, .stream = stream};
      for (int i = 0; i < flags.pairs; ++i) {
        const absl::Status status = MeasurePair(echo_channels, channels, request, flags, cell);
        if (!status.ok()) return status;
      }
      json["cells"].push_back(Report(cell));
    }
  }
  if (!flags.json.empty()) std::ofstream(flags.json) << json.dump(2) << "\n";
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Throughput and latency of expertd's service against a bare echo.");
  app.add_option("--bin-dir", flags.bin_dir, "Where expertd and wire_echo are")->capture_default_str();
  app.add_option("--pairs", flags.pairs, "Interleaved pairs of each size and mode")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--connections", flags.connections)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--in-flight", flags.in_flight, "Requests in flight on each connection")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--window-ms", flags.window_ms, "Length of one measurement")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--kib", flags.kib, "Sizes of the rows of a request, KiB")
      ->check(CLI::Range(4, 16384))
      ->capture_default_str();
  app.add_option("--mode", flags.mode)->check(CLI::IsMember({"both", "unary", "stream"}))->capture_default_str();
  app.add_flag("--tls", flags.tls, "Both over TLS");
  app.add_option("--json", flags.json, "Also write the numbers to this file");
  CLI11_PARSE(app, argc, argv);

  return RunOnTinyCheckpoint("wire_bench", flags.bin_dir,
                             [&](const std::string& checkpoint) { return Run(flags, checkpoint); });
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
