// The flags of `expertd-client bench`.
#pragma once

#include <string>

#include "absl/status/statusor.h"
#include "client/cpp/client.h"
#include "client/cpp/program/bench/campaign.h"
#include "client/cpp/program/layers.h"

namespace CLI {
class App;
}

namespace expertd::client {

// As they were given; MakeCampaign gives them a meaning.
struct BenchFlags {
  ClientOptions client;
  LayerChoice layer;
  std::string layers;  // "all" or "0-3,7": a decode step
  std::string mode = "stream", rows = "16", arrivals = "poisson", routing = "server";
  bool pre_routed = false;
  int concurrency = 8, max_in_flight = 0, windows = 1, timeout_ms = 30000, check_samples = 64, refinements = 4;
  double rate = 0, warmup_s = 2, duration_s = 10, sweep_from = 0, sweep_to = 0;
  std::int64_t requests = 0;
  std::uint64_t seed = 1;
  std::string sweep, slo, metrics;
  bool check = false;
  std::string json, csv, histogram, html;
};

void AddBenchFlags(CLI::App& bench, BenchFlags& flags);

// InvalidArgument naming the flag.
absl::StatusOr<Campaign> MakeCampaign(const BenchFlags& flags);

}  // namespace expertd::client
