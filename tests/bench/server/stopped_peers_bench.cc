// stopped_peers_bench: what callers that stop reading cost the others.
//
// Eight connections to `expertd serve --device null`. Six keep four requests in flight each; the other two either do
// nothing or send requests and never read an answer, and begin anew when the server has cancelled them. Interleaved
// pairs; prints the median ratio of the six's requests per second with its quartiles, and how many calls were
// cancelled.
//
//   stopped_peers_bench [--pairs N] [--window-ms N] [--kib N]
#include <grpcpp/client_context.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/payload.h"
#include "client/cpp/program/layers.h"
#include "expertd/v1/expertd.grpc.pb.h"
#include "kernels/base/mutex.h"
#include "tests/bench/server/bench_support.h"
#include "tests/bench/server/raw_loop.h"
#include "tests/integration/server_process.h"

namespace expertd::bench {
namespace {

constexpr int kReading = 6, kStopped = 2;

struct Flags {
  std::string bin_dir = EXPERTD_BIN_DIR;
  int pairs = 9;
  int window_ms = 1500;
  std::int64_t kib = 64;
};

// Sends for ever and never reads. One thread; ends with the object.
class StoppedPeer {
 public:
  StoppedPeer(const std::string& address, const client::Request& request)
      : stub_(v1::Expertd::NewStub(Connect(address, 1).front())) {
    *message_.mutable_forward() = request.head;
    message_.mutable_forward()->set_hidden_states(request.hidden_states.begin(), request.hidden_states.size());
    thread_ = std::thread([this] { Run(); });
  }
  ~StoppedPeer() {
    ending_ = true;
    {
      MutexLock lock(mutex_);
      if (context_ != nullptr) context_->TryCancel();
    }
    thread_.join();
  }

  int cancelled() const { return cancelled_; }

 private:
  void Run() {
    while (!ending_) {
      grpc::ClientContext context;
      {
        MutexLock lock(mutex_);
        context_ = &context;
      }
      const auto stream = stub_->ForwardStream(&context);
      for (std::uint64_t id = 1; !ending_; ++id) {
        message_.mutable_forward()->set_request_id(id);
        if (!stream->Write(message_)) break;
      }
      cancelled_ += ending_ ? 0 : 1;
      MutexLock lock(mutex_);
      context_ = nullptr;
      context.TryCancel();
    }
  }

  const std::unique_ptr<v1::Expertd::Stub> stub_;
  v1::StreamRequest message_;
  std::atomic<bool> ending_ = false;
  std::atomic<int> cancelled_ = 0;
  Mutex mutex_;
  grpc::ClientContext* context_ ABSL_GUARDED_BY(mutex_) = nullptr;
  std::thread thread_;
};

absl::Status Run(const Flags& flags, const std::string& checkpoint) {
  const auto server = testing::ServerProcess::Start(flags.bin_dir, {"--checkpoint", checkpoint, "--device", "null"});
  if (!server.ok()) return server.status();
  const auto client = client::Client::Connect({.endpoint = (*server)->address()});
  if (!client.ok()) return client.status();
  const auto layer = client::ChooseLayer(**client, {});
  if (!layer.ok()) return layer.status();
  const std::int64_t rows = (flags.kib << 10) / (layer->hidden_size() * 2);
  const client::Request request = client::RandomRequest(*layer, rows, /*pre_routed=*/false, /*seed=*/1);
  const Channels channels = Connect((*server)->address(), kReading);

  std::vector<double> ratios, alone, beside;
  int cancelled = 0;
  for (int pair = 0; pair < flags.pairs; ++pair) {
    double rates[2] = {};
    for (const bool stopped : {pair % 2 == 0, pair % 2 != 0}) {
      std::vector<std::unique_ptr<StoppedPeer>> peers;
      for (int i = 0; stopped && i < kStopped; ++i) {
        peers.push_back(std::make_unique<StoppedPeer>((*server)->address(), request));
      }
      const auto rate = RunRaw(channels, request,
                               {.in_flight = 4,
                                .warmup = std::chrono::milliseconds(300),  // the stopped ones have filled their windows
                                .window = std::chrono::milliseconds(flags.window_ms)});
      if (!rate.ok()) return rate.status();
      rates[stopped ? 1 : 0] = rate->requests_per_second;
      for (const auto& peer : peers) cancelled += peer->cancelled();
    }
    alone.push_back(rates[0]);
    beside.push_back(rates[1]);
    ratios.push_back(rates[1] / rates[0]);
  }
  absl::PrintF(
      "%d KiB, %d peers that read: %.0f req/s; beside %d that do not: %.0f req/s; ratio %.1f %% (quartiles %.1f "
      "to %.1f %%), %d calls cancelled\n",
      flags.kib, kReading, Quantile(alone, 0.5), kStopped, Quantile(beside, 0.5), 100 * Quantile(ratios, 0.5),
      100 * Quantile(ratios, 0.25), 100 * Quantile(ratios, 0.75), cancelled);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Flags flags;
  CLI::App app("Goodput of callers beside others that have stopped reading.");
  app.add_option("--bin-dir", flags.bin_dir, "Where expertd is")->capture_default_str();
  app.add_option("--pairs", flags.pairs, "Interleaved pairs")->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--window-ms", flags.window_ms)->check(CLI::PositiveNumber)->capture_default_str();
  app.add_option("--kib", flags.kib, "Rows of a request, KiB")->check(CLI::Range(4, 16384))->capture_default_str();
  CLI11_PARSE(app, argc, argv);
  return RunOnTinyCheckpoint("stopped_peers_bench", flags.bin_dir,
                             [&](const std::string& checkpoint) { return Run(flags, checkpoint); });
}

}  // namespace
}  // namespace expertd::bench

int main(int argc, char** argv) { return expertd::bench::Main(argc, argv); }
