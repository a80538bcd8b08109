// What the server says of itself over a period: the difference of two scrapes of its metrics endpoint.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace expertd::client {

// Prometheus' text format as "name{labels}" -> value, labels as they stand; comments, timestamps and lines that cannot
// be read are passed over.
using Scrape = std::map<std::string, double, std::less<>>;
Scrape ParseMetrics(absl::string_view text);

struct Bucket {
  double most = 0;  // upper bound; infinity in the last
  double count = 0;
};

// Of expertd's metrics (server/README.md, Metrics), over all callers of the server.
struct ServerPeriod {
  struct Stage {
    std::string name;
    double mean_us = 0;
    double count = 0;
  };
  std::vector<Stage> stages;              // in the order of a request's way; `write` last
  double batches = 0, batch_rows = 0;     // count of batches, and rows in all of them
  std::vector<Bucket> batches_by_rows;    // increasing bounds; not cumulative
  std::map<std::string, double> refused;  // by reason; only those that were
};

ServerPeriod Difference(const Scrape& before, const Scrape& after);

}  // namespace expertd::client
