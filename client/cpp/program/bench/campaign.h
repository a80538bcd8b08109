// A whole bench: one load, or a sweep of loads to the knee, with scrapes of the server's metrics around each.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "client/cpp/program/bench/http_get.h"
#include "client/cpp/program/bench/report.h"
#include "client/cpp/program/bench/sweep.h"

namespace expertd::client {

struct Campaign {
  LoadOptions load;  // of each point; the sweep sets rate or concurrency
  ExpertSkew skew;
  std::optional<SweepPlan> sweep;  // over the rate of an open loop, otherwise over concurrency
  std::optional<Slo> slo;
  std::optional<HttpUrl> metrics;
};

// Measures all loads, one after the other, and appends them to report.points; sets report.knee. Blocks. An error when
// the server does not take such a load or its metrics cannot be read; errors of operations are part of the report.
absl::Status RunCampaign(const Client& client, const Campaign& campaign, const ShowProgress& show, BenchReport& report);

}  // namespace expertd::client
