// Whether the load tester itself was the bottleneck.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace expertd::client {

struct OwnUse {
  double cpu_seconds = 0;   // of this process
  double wall_seconds = 0;  // over which it was used
  int cores = 1;            // that it may run on
  int max_in_flight = 0;    // operations in progress at most
};

struct SendingFacts {
  std::int64_t operations = 0;  // measured
  std::int64_t held_back = 0;   // of them waited for others to be answered
  double lag_p99_us = 0;        // from schedule to sending, of the others
  double latency_p50_us = 0;
};

// One sentence for each sign of it; empty: none.
//   - this process used most of the processors that it may use;
//   - it sent late by much of what it measures (more than a tenth of the median latency, and more than 100 us);
//   - requests waited in it because its limit of unanswered ones was reached.
std::vector<std::string> SaturationSigns(const OwnUse& own, const SendingFacts& sending);

// What this process may use and has used so far: subtract two of them for a period's OwnUse.
double CpuSecondsSoFar();
int UsableCores();

}  // namespace expertd::client
