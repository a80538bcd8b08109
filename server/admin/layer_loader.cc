#include "server/admin/layer_loader.h"

#include <algorithm>
#include <chrono>
#include <fstream>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/job.h"
#include "server/log.h"

namespace expertd {
namespace {

// Kept free beside a layer that is loaded: for rows, and for everybody else on the machine.
constexpr std::int64_t kHostReserveBytes = 256 << 20;

void LogLoaded(const Layer& layer, Clock::duration took) {
  Log(LogLevel::kInfo, "layer loaded",
      {{"layer", layer.spec().Name()},
       {"family", layer.spec().family},
       {"path", layer.path()},
       {"weight_bytes", layer.weight_bytes()},
       {"fingerprint", layer.fingerprint()},
       {"seconds", std::chrono::duration<double>(took).count()}});
}

// A number after `key` in a file of "key value" lines, or the file's only number; nothing when there is none ("max").
std::optional<std::int64_t> NumberIn(const char* path, absl::string_view key = {}) {
  std::ifstream file(path);
  std::string name;
  std::int64_t value = 0;
  if (key.empty()) return file >> value ? std::optional(value) : std::nullopt;
  while (file >> name) {
    if (name == key) return file >> value ? std::optional(value) : std::nullopt;
    file.ignore(std::numeric_limits<std::streamsize>::max(), '\n');
  }
  return std::nullopt;
}

}  // namespace

std::optional<std::int64_t> AvailableHostMemory() {
  std::optional<std::int64_t> available = NumberIn("/proc/meminfo", "MemAvailable:");
  if (available) *available *= 1024;
  const auto limit = NumberIn("/sys/fs/cgroup/memory.max"), used = NumberIn("/sys/fs/cgroup/memory.current");
  if (!limit || !used) return available;
  // Pages of files that were read can be dropped.
  const std::int64_t files = NumberIn("/sys/fs/cgroup/memory.stat", "inactive_file").value_or(0);
  const std::int64_t left = std::max<std::int64_t>(0, *limit - *used + files);
  return available ? std::min(*available, left) : left;
}

absl::Status LayerLoader::LoadEach(const std::vector<PlannedLayer>& plan, const std::function<bool()>& stop) {
  for (const PlannedLayer& planned : plan) {
    if (stop()) return absl::CancelledError("stopped while layers were loading");
    absl::StatusOr<LayerPtr> layer = LoadOne(planned);
    if (!layer.ok()) return layer.status();
    MutexLock lock(mutex_);
    Publish({*std::move(layer)});
  }
  return absl::OkStatus();
}

absl::StatusOr<std::vector<LayerTable::Row>> LayerLoader::LoadTogether(const std::vector<PlannedLayer>& plan,
                                                                       bool replace,
                                                                       const std::function<bool()>& stop) {
  MutexLock lock(mutex_);
  if (absl::Status status = CheckNames(plan, replace); !status.ok()) return status;
  if (absl::Status status = CheckFit(plan); !status.ok()) return status;
  std::vector<LayerPtr> loaded;
  for (const PlannedLayer& planned : plan) {
    if (stop()) return absl::CancelledError("given up while layers were loading; nothing has changed");
    absl::StatusOr<LayerPtr> layer = LoadOne(planned);
    // Here this is no passing shortage, which the code would promise.
    if (absl::IsResourceExhausted(layer.status())) return absl::FailedPreconditionError(layer.status().message());
    if (!layer.ok()) return layer.status();
    loaded.push_back(*std::move(layer));
  }
  if (stop()) return absl::CancelledError("given up when the layers had been loaded; nothing has changed");
  Publish(loaded);
  std::vector<LayerTable::Row> rows;
  for (const LayerPtr& layer : loaded) rows.push_back({layer->spec(), layer});
  return rows;
}

absl::StatusOr<std::vector<LayerTable::Row>> LayerLoader::Unload(const std::string& model,
                                                                 std::optional<std::int64_t> layer) {
  MutexLock lock(mutex_);
  absl::StatusOr<std::vector<LayerTable::Row>> gone = layers_.Withdraw(model, layer);
  if (!gone.ok()) return gone;
  std::vector<LayerPtr> retired;
  for (const LayerTable::Row& row : *gone) {
    health_.LayerLeaves(row.spec.Name());
    Log(LogLevel::kInfo, "layer unloaded", {{"layer", row.spec.Name()}});
    retired.push_back(row.layer);
  }
  Retire(retired);
  return gone;
}

absl::StatusOr<LayerPtr> LayerLoader::LoadOne(const PlannedLayer& planned) {
  const Clock::time_point start = Clock::now();
  absl::StatusOr<std::unique_ptr<LayerSource>> source = planned.open();
  if (!source.ok()) return source.status();
  absl::StatusOr<LayerPtr> layer = engine_.LoadLayer(**source);
  if (layer.ok()) LogLoaded(**layer, Clock::now() - start);
  return layer;
}

absl::Status LayerLoader::CheckNames(const std::vector<PlannedLayer>& plan, bool replace) const {
  if (replace) return absl::OkStatus();
  for (const LayerTable::Row& row : layers_.List()) {
    for (const PlannedLayer& planned : plan) {
      if (planned.spec.Name() != row.spec.Name()) continue;
      return absl::AlreadyExistsError(absl::StrCat("layer ", row.spec.Name(), " serves already; replace is not set"));
    }
  }
  return absl::OkStatus();
}

absl::Status LayerLoader::CheckFit(const std::vector<PlannedLayer>& plan) {
  std::int64_t wanted = 0;
  for (const PlannedLayer& planned : plan) {
    if (planned.spec.hidden_size > limits_.max_hidden_size) {
      return absl::FailedPreconditionError(absl::StrCat("layer ", planned.spec.Name(), ": hidden size ",
                                                        planned.spec.hidden_size, " is above --max-hidden-size ",
                                                        limits_.max_hidden_size));
    }
    wanted += planned.bytes;
  }
  const std::int64_t resident = Resident(), budget = limits_.weight_budget_bytes;
  if (budget > 0 && resident + wanted > budget) {
    return absl::FailedPreconditionError(absl::StrCat("weights: ", wanted, " bytes do not fit beside ", resident,
                                                      " that are resident (--weight-budget-mib ", budget >> 20, ")"));
  }
  const std::optional<std::int64_t> available = AvailableHostMemory();
  if (limits_.host_memory && available && wanted + kHostReserveBytes > *available) {
    return absl::FailedPreconditionError(absl::StrCat("weights: ", wanted, " bytes and a reserve of ",
                                                      kHostReserveBytes, " do not fit in ", *available,
                                                      " bytes of available memory"));
  }
  return absl::OkStatus();
}

std::int64_t LayerLoader::Resident() {
  std::int64_t bytes = 0;
  for (const LayerTable::Row& row : layers_.List()) bytes += row.layer ? row.layer->weight_bytes() : 0;
  std::erase_if(retired_, [](const auto& layer) { return layer.expired(); });
  for (const auto& weak : retired_) {
    if (const LayerPtr layer = weak.lock()) bytes += layer->weight_bytes();
  }
  return bytes;
}

void LayerLoader::Publish(const std::vector<LayerPtr>& loaded) {
  for (const LayerPtr& layer : loaded) metrics_.AddLayer(*layer);
  Retire(layers_.Serve(loaded));
  for (const LayerPtr& layer : loaded) health_.LayerServes(layer->spec().Name());
}

void LayerLoader::Retire(const std::vector<LayerPtr>& layers) {
  for (const LayerPtr& layer : layers) {
    metrics_.RemoveLayer(*layer);
    retired_.push_back(layer);
  }
}

}  // namespace expertd
