// lane_bench: what a request costs on each way into the server, around an engine that only copies its rows.
//
//   tcp         rows on a gRPC stream over loopback TCP
//   tcp-region  the same stream, rows in shared memory
//   ring        rows in shared memory, requests in a doorbell ring; both sides sleep when there is nothing to do
//   ring-spin   the same; both sides look for --spin-us before they sleep
//
// One request in flight, the ways in turns, round after round. Prints, for each way, the median over the rounds of p50
// and p99 with the p50's quartiles, in microseconds from sending to having the answer. The rows are written once
// before, as a caller that computes in the region has them there.
//
// With --device cuda:N a layer of the shape --like computes there, and there are these ways too:
//
//   tcp-device, ring-device, ring-device-spin     as their namesakes, rows in device memory (CUDA IPC)
//
// Servers that spin let their scheduler's threads spin as well (--busy-poll-us).
// `rest` is then what a request takes beside the layer's own stages (route, gemm, combine), and beside it stand its
// parts; `beyond` is what the server does not see. The bits of all ways are compared with those of tcp.
//
//   lane_bench [--rows N] [--rounds N] [--window-ms N] [--spin-us N] [--device cuda:N] [--like MODEL]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <array>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/layers.h"
#include "client/cpp/shared_region.h"
#include "tests/bench/server/bench_support.h"
#include "tests/bench/server/raw_loop.h"
#include "tests/integration/server_process.h"
#include "tests/support/mapped_region.h"

namespace expertd::bench {
namespace {

using testing::ServerProcess;
using Clock = std::chrono::steady_clock;

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  std::int64_t rows = 16;
  int rounds = 9;
  int window_ms = 300;
  int spin_us = 200;
  std::string device = "null";
  std::string like = "qwen3-30b-a3b";

  bool computes() const { return device != "null"; }
};

// Of a request's time, microseconds.
struct Part {
  const char* name;
  double (*of)(double passed, const v1::StageMicros& stages);
};
constexpr Part kParts[] = {
    {"rest", [](double passed, const v1::StageMicros& s) { return passed - s.route() - s.gemm() - s.combine(); }},
    {"decode", [](double, const v1::StageMicros& s) { return double{s.decode()}; }},
    {"queue", [](double, const v1::StageMicros& s) { return double{s.queue()}; }},
    {"stage in", [](double, const v1::StageMicros& s) { return double{s.stage_in()}; }},
    {"out", [](double, const v1::StageMicros& s) { return double{s.stage_out()}; }},
    {"beyond", [](double passed, const v1::StageMicros& s) { return passed - s.total(); }}};

// One way into a server, ready to go.
struct Way {
  std::string name;
  bool region = false, ring = false, device = false, spins = false;
  Channels channels;
  client::Request request;
  std::string expected;  // the outputs
  std::unique_ptr<client::SharedSession> session;
  std::unique_ptr<client::SharedRegion> host;
  std::unique_ptr<testing::MappedRegion> mapped;
  std::vector<double> p50, p99;                              // by round
  std::array<std::vector<double>, std::size(kParts)> parts;  // likewise, p50
};

absl::Status PlaceRows(Way& way, std::chrono::microseconds spin) {
  const std::uint64_t bytes = way.request.hidden_states.size();
  way.session = client::SharedSession::Open(way.channels[0]);
  absl::StatusOr<std::unique_ptr<client::SharedRegion>> host = way.session->CreateRegion(
      {.bytes = 2 * bytes, .ring_slots = way.ring ? 8u : 0u, .slot_bytes = 4096, .spin = spin});
  if (!host.ok()) return host.status();
  way.host = *std::move(host);
  v1::RegionRows* rows = way.request.head.mutable_region();
  rows->set_input_offset(way.device ? 0 : way.host->rows_offset());
  rows->set_output_offset(rows->input_offset() + bytes);
  if (way.device) {
    const auto device = way.session->CreateDeviceRegion(2 * bytes);
    if (!device.ok()) return device.status();
    auto mapped = testing::MappedRegion::Open(*device);
    if (!mapped.ok()) return mapped.status();
    way.mapped = *std::move(mapped);
    rows->set_handle(device->handle);
    if (auto s = way.mapped->Write(0, way.request.hidden_states.begin(), bytes); !s.ok()) return s;
  } else {
    rows->set_handle(way.host->handle());
    std::memcpy(way.host->data() + rows->input_offset(), way.request.hidden_states.begin(), bytes);
  }
  way.request.hidden_states = grpc::Slice();
  return absl::OkStatus();
}

// Of one window, nanoseconds.
struct Times {
  client::Histogram latency;
  std::array<client::Histogram, std::size(kParts)> parts;

  void Add(std::chrono::nanoseconds passed, const v1::ForwardResponse& response) {
    latency.Add(passed.count());
    const double microseconds = std::chrono::duration<double, std::micro>(passed).count();
    for (std::size_t i = 0; i < parts.size(); ++i) {
      parts[i].Add(static_cast<std::int64_t>(1000 * kParts[i].of(microseconds, response.result().stages())));
    }
  }
};

absl::StatusOr<v1::ForwardResponse> RingOnce(client::RingClient& ring, std::uint64_t id, v1::StreamRequest& message,
                                             std::string& bytes) {
  message.mutable_forward()->set_request_id(id);
  message.SerializeToString(&bytes);
  if (absl::Status status = ring.Send(bytes); !status.ok()) return status;
  if (absl::Status status = ring.Receive(std::chrono::seconds(10), &bytes); !status.ok()) return status;
  v1::ForwardResponse response;
  if (!response.ParseFromString(bytes) || response.request_id() != id) return absl::InternalError("not our answer");
  if (absl::Status status = client::ErrorOf(response); !status.ok()) return status;
  return response;
}

absl::StatusOr<Times> RunRing(Way& way, std::chrono::milliseconds window) {
  v1::StreamRequest message;
  *message.mutable_forward() = way.request.head;
  std::string bytes;
  Times times;
  const Clock::time_point begin = Clock::now() + window / 5, end = begin + window;
  std::uint64_t id = 0;
  for (Clock::time_point sent = Clock::now(), now; sent < end; sent = now) {
    const absl::StatusOr<v1::ForwardResponse> response = RingOnce(*way.host->ring(), ++id, message, bytes);
    if (!response.ok()) return response.status();
    now = Clock::now();
    if (sent >= begin) times.Add(now - sent, *response);
  }
  return times;
}

absl::StatusOr<Times> RunStream(Way& way, std::chrono::milliseconds window) {
  Times times;
  absl::Status answers;
  const auto look = [&](std::chrono::nanoseconds latency, grpc::ByteBuffer& message) {
    const absl::StatusOr<client::Answer> answer = client::DecodeAnswer(message);
    if (answer.ok() && client::ErrorOf(answer->response).ok()) return times.Add(latency, answer->response);
    answers = answer.ok() ? client::ErrorOf(answer->response) : answer.status();
  };
  const auto result =
      RunRaw(way.channels, way.request, {.in_flight = 1, .warmup = window / 5, .window = window, .look = look});
  if (!result.ok()) return result.status();
  if (!answers.ok()) return answers;
  return times;
}

// What the last request left in the region.
absl::Status CheckOutputs(const Way& way) {
  if (!way.region) return absl::OkStatus();
  const std::uint64_t offset = way.request.head.region().output_offset();
  std::string outputs(way.expected.size(), '\0');
  absl::Status status;
  if (way.device) {
    status = way.mapped->Read(offset, outputs.data(), outputs.size());
  } else {
    std::memcpy(outputs.data(), way.host->data() + offset, outputs.size());
  }
  if (!status.ok()) return status;
  return outputs == way.expected ? absl::OkStatus() : absl::InternalError("other bits than those of tcp");
}

absl::Status Measure(Way& way, const Flags& flags) {
  const std::chrono::milliseconds window(flags.window_ms);
  const absl::StatusOr<Times> times = way.ring ? RunRing(way, window) : RunStream(way, window);
  absl::Status status = times.ok() ? CheckOutputs(way) : times.status();
  if (!status.ok()) return absl::Status(status.code(), absl::StrCat(way.name, ": ", status.message()));
  way.p50.push_back(static_cast<double>(times->latency.Percentile(0.5)) / 1000);
  way.p99.push_back(static_cast<double>(times->latency.Percentile(0.99)) / 1000);
  for (std::size_t i = 0; i < way.parts.size(); ++i) {
    way.parts[i].push_back(static_cast<double>(times->parts[i].Percentile(0.5)) / 1000);
  }
  return absl::OkStatus();
}

void Print(const Way& way, bool parts) {
  absl::PrintF("%-16s %9.1f   %6.1f to %6.1f %9.1f", way.name, Quantile(way.p50, 0.5), Quantile(way.p50, 0.25),
               Quantile(way.p50, 0.75), Quantile(way.p99, 0.5));
  for (const std::vector<double>& part : way.parts) {
    if (parts) absl::PrintF(" %9.1f", Quantile(part, 0.5));
  }
  absl::PrintF("\n");
}

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(const Flags& flags, const std::string& checkpoint,
                                                           int spin_us) {
  return ServerProcess::Start(
      flags.bin_dir, {"--checkpoint", checkpoint, "--device", flags.device, "--fast-lane-socket",
                      absl::StrCat(checkpoint, "/lane.", spin_us), "--fast-lane-spin-us", absl::StrCat(spin_us),
                      "--fast-lane-device-mib", flags.computes() ? "64" : "0", "--busy-poll-us",
                      absl::StrCat(flags.computes() ? spin_us : 0)});
}

std::vector<Way> MakeWays(const Flags& flags) {
  std::vector<Way> ways;
  for (const bool device : {false, true}) {
    if (device && !flags.computes()) break;
    const char* const where = device ? "-device" : "";
    if (!device) ways.push_back({.name = "tcp"});
    ways.push_back({.name = device ? "tcp-device" : "tcp-region", .region = true, .device = device});
    ways.push_back({.name = absl::StrCat("ring", where), .region = true, .ring = true, .device = device});
    ways.push_back(
        {.name = absl::StrCat("ring", where, "-spin"), .region = true, .ring = true, .device = device, .spins = true});
  }
  return ways;
}

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  const auto server = StartServer(flags, checkpoint, 0);
  if (!server.ok()) return server.status();
  const auto spinning = StartServer(flags, checkpoint, flags.spin_us);
  if (!spinning.ok()) return spinning.status();
  const auto client = client::Client::Connect({.endpoint = (*server)->address()});
  if (!client.ok()) return client.status();
  const auto layer = client::ChooseLayer(**client, {});
  if (!layer.ok()) return layer.status();

  std::vector<Way> ways = MakeWays(flags);
  const client::Request request = client::RandomRequest(*layer, flags.rows, /*pre_routed=*/false, /*seed=*/1);
  const absl::StatusOr<client::Answer> expected = (*client)->Forward(request);
  if (!expected.ok()) return expected.status();
  for (Way& way : ways) {
    way.channels = Connect((way.spins ? *spinning : *server)->address(), 1);
    way.request = request;
    way.expected = expected->OutputString();
    if (!way.region) continue;
    const std::chrono::microseconds spin(way.spins ? flags.spin_us : 0);
    if (absl::Status status = PlaceRows(way, spin); !status.ok()) return status;
  }
  for (int round = 0; round < flags.rounds; ++round) {
    for (Way& way : ways) {
      if (absl::Status status = Measure(way, flags); !status.ok()) return status;
    }
  }
  absl::PrintF("%d rows x %d bf16 on %s, %d rounds of %d ms, microseconds\n", flags.rows, layer->hidden_size(),
               flags.device, flags.rounds, flags.window_ms);
  absl::PrintF("%-16s %9s   %-16s %9s", "way", "p50", "quartiles", "p99");
  for (const Part& part : kParts) {
    if (flags.computes()) absl::PrintF(" %9s", part.name);
  }
  absl::PrintF("\n");
  for (const Way& way : ways) Print(way, flags.computes());
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Latency of one request through TCP, shared memory and a doorbell ring.");
  app.add_option("--bin-dir", flags.bin_dir, "Where expertd is")->capture_default_str();
  app.add_option("--rows", flags.rows, "Rows of a request")->check(CLI::Range(1, 4096))->capture_default_str();
  app.add_option("--rounds", flags.rounds)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--window-ms", flags.window_ms, "Length of one measurement")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--spin-us", flags.spin_us, "How long ring-spin looks before it sleeps, on both sides")
      ->check(CLI::Range(1, 1'000'000))
      ->capture_default_str();
  app.add_option("--device", flags.device, "null, or cuda:N")->capture_default_str();
  app.add_option("--like", flags.like, "Shape of the layer that a device computes")->capture_default_str();
  CLI11_PARSE(app, argc, argv);

  const auto run = [&](const std::string& checkpoint) { return Run(flags, checkpoint); };
  return flags.computes() ? RunOnSynth("lane_bench", flags.bin_dir, {"--like", flags.like}, run)
                          : RunOnTinyCheckpoint("lane_bench", flags.bin_dir, run);
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
