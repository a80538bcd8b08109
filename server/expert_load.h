// How many rows each expert of each layer got: a metric that operators ask for (--expert-series), because it costs a
// series per expert and, of server-routed requests, the copy of what the router chose.
#pragma once

#include <prometheus/collectable.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/types/span.h"
#include "kernels/base/mutex.h"
#include "kernels/engine.h"

namespace expertd {

// Thread-safe.
class ExpertLoad : public prometheus::Collectable {
 public:
  // At most `max_series` series of expertd_expert_rows_total: a layer whose experts do not fit beside those of the
  // layers before it gets none. Its imbalance is told all the same.
  explicit ExpertLoad(std::int64_t max_series) : max_series_(max_series) {}

  // A layer that takes another's name goes on with its numbers, if it has as many experts.
  void AddLayer(const LayerSpec& spec);
  // The series of that name end.
  void RemoveLayer(const std::string& name);

  // Expert ids of slots that were computed; others than the layer's experts (-1: not used) are left out. Does not wait
  // for a scrape in progress. Nothing happens where no series are wanted.
  void Count(const LayerSpec& spec, absl::Span<const std::int32_t> ids);

  std::vector<prometheus::MetricFamily> Collect() const override;

 private:
  struct LayerRows {
    explicit LayerRows(std::int64_t experts, bool told) : rows(static_cast<std::size_t>(experts)), has_series(told) {}

    std::vector<std::atomic<std::int64_t>> rows;  // by expert
    const bool has_series;
    // What the counts were when the window over which the imbalance is told began, and when the next began.
    std::vector<std::int64_t> before, next;
    std::chrono::steady_clock::time_point next_since;
  };

  static double Imbalance(LayerRows& layer);
  void Remove(const std::string& name) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::int64_t max_series_;
  mutable Mutex mutex_;  // of the map; what is counted or told at this moment outlives its place there
  std::map<std::string, std::shared_ptr<LayerRows>> layers_ ABSL_GUARDED_BY(mutex_);
  std::int64_t series_ ABSL_GUARDED_BY(mutex_) = 0;
  mutable Mutex collect_mutex_;  // one scrape at a time: windows move on
};

}  // namespace expertd
