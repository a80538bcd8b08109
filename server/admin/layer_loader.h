// How layers come into service and leave it, at start and at run time: engine, table, health and metrics in step.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "server/health.h"
#include "server/layer_plan.h"
#include "server/layer_table.h"
#include "server/metrics.h"

namespace expertd {

struct LoadLimits {
  std::int64_t max_hidden_size = 0;      // the message limit was made for it
  std::int64_t weight_budget_bytes = 0;  // of all layers together; 0: what the machine has
  bool host_memory = false;              // weights are in this machine's memory, and must not exceed what is available
};

// Thread-safe; loads and unloads run one after the other. Everything referred to must outlive it.
class LayerLoader {
 public:
  LayerLoader(Engine& engine, LayerTable& layers, Metrics& metrics, Health& health, const LoadLimits& limits)
      : engine_(engine), layers_(layers), metrics_(metrics), health_(health), limits_(limits) {}

  // Loads and serves one after the other, as at start. Cancelled when `stop` (asked between layers) says so; the
  // engine's or the checkpoint's error otherwise.
  absl::Status LoadEach(const std::vector<PlannedLayer>& plan, const std::function<bool()>& stop);

  // Loads all, then serves all in one step; `replace`: also those whose names are taken. Nothing has changed when it
  // fails. Besides the above, AlreadyExists: a name is taken; FailedPrecondition: it does not fit beside what serves.
  absl::StatusOr<std::vector<LayerTable::Row>> LoadTogether(const std::vector<PlannedLayer>& plan, bool replace,
                                                            const std::function<bool()>& stop);

  // The layer, or all of the model, out of service; requests that were admitted still run. NotFound.
  absl::StatusOr<std::vector<LayerTable::Row>> Unload(const std::string& model, std::optional<std::int64_t> layer);

 private:
  absl::StatusOr<LayerPtr> LoadOne(const PlannedLayer& planned);
  absl::Status CheckNames(const std::vector<PlannedLayer>& plan, bool replace) const;
  absl::Status CheckFit(const std::vector<PlannedLayer>& plan) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Bytes of what serves, and of what requests still hold though it does not.
  std::int64_t Resident() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Publish(const std::vector<LayerPtr>& loaded) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Retire(const std::vector<LayerPtr>& layers) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  Engine& engine_;
  LayerTable& layers_;
  Metrics& metrics_;
  Health& health_;
  const LoadLimits limits_;

  Mutex mutex_;  // one change at a time
  std::vector<std::weak_ptr<const Layer>> retired_ ABSL_GUARDED_BY(mutex_);
};

// What a process can still take without driving the machine, or its control group, out of memory; nothing when the
// system does not say.
std::optional<std::int64_t> AvailableHostMemory();

}  // namespace expertd
