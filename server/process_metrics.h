// What every Prometheus client library tells of its process, under the usual names (process_...): prometheus-cpp ships
// no such collector.
#pragma once

#include <prometheus/collectable.h>

#include <vector>

namespace expertd {

// Read from the kernel at each scrape; a value that the kernel does not tell is left out. Thread-safe.
class ProcessMetrics : public prometheus::Collectable {
 public:
  // The time of construction counts as the start of the process.
  ProcessMetrics();

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  const double start_seconds_;
};

}  // namespace expertd
