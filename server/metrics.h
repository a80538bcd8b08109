// What Prometheus sees. Every series is resolved when it becomes known (at start, or when a layer is loaded), so that a
// request pays for its observations only. The table of names is in README.md.
#pragma once

#include <prometheus/collectable.h>
#include <prometheus/counter.h>
#include <prometheus/family.h>
#include <prometheus/gauge.h>
#include <prometheus/histogram.h>
#include <prometheus/registry.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "kernels/engine.h"
#include "server/expert_load.h"
#include "server/scheduler/scheduler.h"

namespace expertd {

enum class Rpc {
  kForward,
  kForwardStream,
  kListLayers,
  kGetServerInfo,
  kModelInfer,
  kModelStreamInfer,
  kInferenceQuery,  // every other call of the open inference protocol
  kSession,
  kRing,
  kLoadCheckpoint,
  kUnloadLayer,
};
inline constexpr int kRpcCount = 11;
// As metrics and spans call it; a literal.
const char* RpcName(Rpc rpc);

// Seconds of one request, as its answer reports them.
struct RequestTimes {
  double decode = 0;
  double queue = 0;
  StageTimes stages;
  double total = 0;
};

// What a layer has done since it was loaded. Seconds are sums.
struct LayerTotals {
  std::int64_t answered = 0;  // requests
  std::int64_t rows = 0;      // of them
  std::int64_t failed = 0;    // requests that were accepted and not answered
  std::int64_t batches = 0;
  RequestTimes answered_seconds;
  double failed_seconds = 0;
  std::int64_t last_answer_ms = 0;  // since 1970; 0: none
};

// What a scrape asks for and nobody counts in between.
struct LiveState {
  DeviceMemory memory;
  std::vector<QueueStats> queues;
  std::int64_t rows_in_flight = 0;
  std::int64_t unsent_bytes = 0;
  std::int64_t calls = 0;
  std::uint64_t region_bytes = 0;
  std::uint64_t device_region_bytes = 0;
  std::int64_t dropped_spans = 0;
  std::int64_t graphs = 0;
  StagingTotals staging;
};

// Thread-safe.
class Metrics {
 public:
  // `expert_series`: of expertd_expert_rows_total, at most; 0: experts are not counted.
  explicit Metrics(std::int64_t expert_series = 0);

  // Constant labels of expertd_build_info.
  void SetBuildInfo(const std::string& version, const EngineInfo& engine);
  void AddLayer(const Layer& layer);
  // Its series end, unless another layer has its name by now. Before the layer is freed.
  void RemoveLayer(const Layer& layer);
  // `read` is called by scrapes, from other threads, as long as a collectable lives.
  void SetLiveState(std::function<LiveState()> read);

  // Every request once, refused ones too; on a stream each message is a request.
  void RequestDone(Rpc rpc, absl::StatusCode code, double seconds);
  void Answered(const Layer& layer, std::int64_t rows, const RequestTimes& times);
  // Accepted, and then not answered with rows.
  void Failed(const Layer& layer, double seconds);
  // Refused before it was queued.
  void Rejected(absl::StatusCode code);
  void BatchDone(const Layer& layer, std::int64_t rows, std::int64_t requests);
  // Ids that a request was computed with; only where experts are counted.
  void CountExperts(const Layer& layer, absl::Span<const std::int32_t> ids);
  // Zeros for a layer that is not known.
  LayerTotals TotalsOf(const Layer& layer) const;
  // From handing an answer to the transport until it took all of it.
  void WriteDone(double seconds);
  void WriteTimedOut(int calls);
  void OutputOverrun(int calls);
  // `what`: certificate, metrics_certificate or tokens.
  void CredentialsReloaded(const std::string& what, bool ok);
  void SetCertificateExpiry(double unix_seconds);

  // For an exposer; it only borrows them.
  std::vector<std::weak_ptr<prometheus::Collectable>> collectables() const;

 private:
  class LiveCollectable;
  struct LayerSeries {
    std::string name;
    prometheus::Histogram* batch_rows;
    prometheus::Histogram* batch_requests;
    prometheus::Gauge* weight_bytes;
    LayerTotals totals;
  };
  static constexpr int kCodes = 17;
  static constexpr int kStages = 8;

  // Set at construction; the series synchronise themselves.
  const std::shared_ptr<prometheus::Registry> registry_;
  const std::shared_ptr<LiveCollectable> live_;
  const std::shared_ptr<prometheus::Collectable> process_;
  const std::shared_ptr<ExpertLoad> experts_;
  std::array<std::array<prometheus::Counter*, kCodes>, kRpcCount> requests_;
  std::array<prometheus::Histogram*, kRpcCount> request_seconds_;
  std::array<prometheus::Histogram*, kStages> stage_seconds_;
  std::array<prometheus::Counter*, kCodes> rejected_;
  prometheus::Counter* write_timeouts_;
  prometheus::Counter* output_overruns_;
  prometheus::Family<prometheus::Histogram>* batch_rows_;
  prometheus::Family<prometheus::Histogram>* batch_requests_;
  prometheus::Family<prometheus::Gauge>* weight_bytes_;
  prometheus::Family<prometheus::Counter>* credential_reloads_;
  prometheus::Family<prometheus::Gauge>* certificate_expiry_;

  mutable Mutex mutex_;
  absl::flat_hash_map<const Layer*, LayerSeries> layers_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
