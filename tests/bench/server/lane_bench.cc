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
//   lane_bench [--rows N] [--rounds N] [--window-ms N] [--spin-us N]
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstring>
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
};

// One way into a server, ready to go.
struct Way {
  std::string name;
  bool ring = false;
  Channels channels;
  client::Request request;
  std::unique_ptr<client::SharedSession> session;
  std::unique_ptr<client::SharedRegion> region;
  std::vector<double> p50, p99;  // by round
};

absl::Status PlaceRows(Way& way, std::chrono::microseconds spin) {
  const std::uint64_t bytes = way.request.hidden_states.size();
  way.session = client::SharedSession::Open(way.channels[0]);
  absl::StatusOr<std::unique_ptr<client::SharedRegion>> region = way.session->CreateRegion(
      {.bytes = 2 * bytes, .ring_slots = way.ring ? 8u : 0u, .slot_bytes = 4096, .spin = spin});
  if (!region.ok()) return region.status();
  way.region = *std::move(region);
  v1::RegionRows* rows = way.request.head.mutable_region();
  rows->set_handle(way.region->handle());
  rows->set_input_offset(way.region->rows_offset());
  rows->set_output_offset(way.region->rows_offset() + bytes);
  std::memcpy(way.region->data() + rows->input_offset(), way.request.hidden_states.begin(), bytes);
  way.request.hidden_states = grpc::Slice();
  return absl::OkStatus();
}

absl::Status RingOnce(client::RingClient& ring, std::uint64_t id, v1::StreamRequest& message, std::string& bytes) {
  message.mutable_forward()->set_request_id(id);
  message.SerializeToString(&bytes);
  if (absl::Status status = ring.Send(bytes); !status.ok()) return status;
  if (absl::Status status = ring.Receive(std::chrono::seconds(10), &bytes); !status.ok()) return status;
  v1::ForwardResponse response;
  if (!response.ParseFromString(bytes) || response.request_id() != id) return absl::InternalError("not our answer");
  return client::ErrorOf(response);
}

absl::StatusOr<client::Histogram> RunRing(Way& way, std::chrono::milliseconds window) {
  v1::StreamRequest message;
  *message.mutable_forward() = way.request.head;
  std::string bytes;
  client::Histogram latency;
  const Clock::time_point begin = Clock::now() + window / 5, end = begin + window;
  std::uint64_t id = 0;
  for (Clock::time_point sent = Clock::now(), now; sent < end; sent = now) {
    if (absl::Status status = RingOnce(*way.region->ring(), ++id, message, bytes); !status.ok()) return status;
    now = Clock::now();
    if (sent >= begin) latency.Add(std::chrono::nanoseconds(now - sent).count());
  }
  return latency;
}

absl::StatusOr<client::Histogram> RunStream(Way& way, std::chrono::milliseconds window) {
  const auto result = RunRaw(way.channels, way.request, {.in_flight = 1, .warmup = window / 5, .window = window});
  if (!result.ok()) return result.status();
  return result->latency;
}

absl::Status Measure(Way& way, const Flags& flags) {
  const std::chrono::milliseconds window(flags.window_ms);
  const absl::StatusOr<client::Histogram> latency = way.ring ? RunRing(way, window) : RunStream(way, window);
  if (!latency.ok())
    return absl::Status(latency.status().code(), absl::StrCat(way.name, ": ", latency.status().message()));
  way.p50.push_back(static_cast<double>(latency->Percentile(0.5)) / 1000);
  way.p99.push_back(static_cast<double>(latency->Percentile(0.99)) / 1000);
  if (way.region == nullptr) return absl::OkStatus();
  const v1::RegionRows& rows = way.request.head.region();
  const std::uint64_t bytes = rows.output_offset() - rows.input_offset();
  const std::byte* data = way.region->data();
  const bool right = std::memcmp(data + rows.input_offset(), data + rows.output_offset(), bytes) == 0;
  return right ? absl::OkStatus() : absl::InternalError(absl::StrCat(way.name, ": the rows did not come back"));
}

void Print(const Way& way) {
  absl::PrintF("%-11s %9.1f   %6.1f to %6.1f %9.1f\n", way.name, Quantile(way.p50, 0.5), Quantile(way.p50, 0.25),
               Quantile(way.p50, 0.75), Quantile(way.p99, 0.5));
}

absl::StatusOr<std::unique_ptr<ServerProcess>> StartServer(const Flags& flags, const std::string& checkpoint,
                                                           int spin_us) {
  return ServerProcess::Start(
      flags.bin_dir, {"--checkpoint", checkpoint, "--device", "null", "--fast-lane-socket",
                      absl::StrCat(checkpoint, "/lane.", spin_us), "--fast-lane-spin-us", absl::StrCat(spin_us)});
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

  Way ways[4] = {
      {.name = "tcp"}, {.name = "tcp-region"}, {.name = "ring", .ring = true}, {.name = "ring-spin", .ring = true}};
  for (Way& way : ways) {
    const bool spins = way.name == "ring-spin";
    way.channels = Connect((spins ? *spinning : *server)->address(), 1);
    way.request = client::RandomRequest(*layer, flags.rows, /*pre_routed=*/false, /*seed=*/1);
    if (way.name == "tcp") continue;
    const std::chrono::microseconds spin(spins ? flags.spin_us : 0);
    if (absl::Status status = PlaceRows(way, spin); !status.ok()) return status;
  }
  for (int round = 0; round < flags.rounds; ++round) {
    for (Way& way : ways) {
      if (absl::Status status = Measure(way, flags); !status.ok()) return status;
    }
  }
  absl::PrintF("%d rows x %d bf16, %d rounds of %d ms, microseconds\n", flags.rows, layer->hidden_size(), flags.rounds,
               flags.window_ms);
  absl::PrintF("%-11s %9s   %-16s %9s\n", "way", "p50", "quartiles", "p99");
  for (const Way& way : ways) Print(way);
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
  CLI11_PARSE(app, argc, argv);

  return RunOnTinyCheckpoint("lane_bench", flags.bin_dir,
                             [&](const std::string& checkpoint) { return Run(flags, checkpoint); });
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
