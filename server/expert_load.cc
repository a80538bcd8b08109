#include "server/expert_load.h"

#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>

#include <algorithm>
#include <iterator>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace expertd {
namespace {

// The imbalance is that of the last one to two windows.
constexpr std::chrono::seconds kWindow{30};

prometheus::ClientMetric Sample(std::vector<prometheus::ClientMetric::Label> labels, double value) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.counter.value = metric.gauge.value = value;  // only the one of the family's type is written
  return metric;
}

}  // namespace

void ExpertLoad::AddLayer(const LayerSpec& spec) {
  if (max_series_ == 0) return;
  MutexLock lock(mutex_);
  const auto found = layers_.find(spec.Name());
  if (found != layers_.end()) {
    if (std::ssize(found->second->rows) == spec.num_experts) return;
    Remove(spec.Name());
  }
  const bool fits = series_ + spec.num_experts <= max_series_;
  layers_[spec.Name()] = std::make_shared<LayerRows>(spec.num_experts, fits);
  if (fits) {
    series_ += spec.num_experts;
  } else {
    Log(LogLevel::kWarning, "no series for the experts of a layer",
        {{"layer", spec.Name()}, {"experts", spec.num_experts}, {"expert_series", max_series_}});
  }
}

void ExpertLoad::RemoveLayer(const std::string& name) {
  MutexLock lock(mutex_);
  Remove(name);
}

void ExpertLoad::Remove(const std::string& name) {
  const auto found = layers_.find(name);
  if (found == layers_.end()) return;
  if (found->second->has_series) series_ -= std::ssize(found->second->rows);
  layers_.erase(found);
}

void ExpertLoad::Count(const LayerSpec& spec, absl::Span<const std::int32_t> ids) {
  if (max_series_ == 0) return;
  std::shared_ptr<LayerRows> layer;
  {
    MutexLock lock(mutex_);
    const auto found = layers_.find(spec.Name());
    if (found == layers_.end()) return;
    layer = found->second;
  }
  for (const std::int32_t id : ids) {
    if (id >= 0 && static_cast<std::size_t>(id) < layer->rows.size()) {
      layer->rows[static_cast<std::size_t>(id)].fetch_add(1, std::memory_order_relaxed);
    }
  }
}

double ExpertLoad::Imbalance(LayerRows& layer) {
  std::vector<std::int64_t> counts(layer.rows.begin(), layer.rows.end());
  const auto now = std::chrono::steady_clock::now();
  if (layer.next.empty()) {
    layer.before.assign(counts.size(), 0);
    layer.next = counts;
    layer.next_since = now;
  } else if (now - layer.next_since >= kWindow) {
    layer.before = std::exchange(layer.next, counts);
    layer.next_since = now;
  }
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] -= layer.before[i];
  const auto all = static_cast<double>(std::accumulate(counts.begin(), counts.end(), std::int64_t{0}));
  if (all == 0) return 0;
  return static_cast<double>(*std::max_element(counts.begin(), counts.end())) * static_cast<double>(counts.size()) /
         all;
}

std::vector<prometheus::MetricFamily> ExpertLoad::Collect() const {
  if (max_series_ == 0) return {};
  MutexLock one_scrape(collect_mutex_);
  std::vector<std::pair<std::string, std::shared_ptr<LayerRows>>> layers;
  {
    MutexLock lock(mutex_);
    layers.assign(layers_.begin(), layers_.end());
  }
  prometheus::MetricFamily rows = {.name = "expertd_expert_rows_total",
                                   .help = "Rows that an expert computed.",
                                   .type = prometheus::MetricType::Counter,
                                   .metric = {}};
  prometheus::MetricFamily imbalance = {.name = "expertd_expert_imbalance",
                                        .help = "Rows of the busiest expert over the mean, lately; 0: none.",
                                        .type = prometheus::MetricType::Gauge,
                                        .metric = {}};
  for (const auto& [name, layer] : layers) {
    imbalance.metric.push_back(Sample({{"layer", name}}, Imbalance(*layer)));
    if (!layer->has_series) continue;
    for (std::size_t expert = 0; expert < layer->rows.size(); ++expert) {
      rows.metric.push_back(Sample({{"layer", name}, {"expert", absl::StrCat(expert)}},
                                   static_cast<double>(layer->rows[expert].load(std::memory_order_relaxed))));
    }
  }
  return {rows, imbalance};
}

}  // namespace expertd
