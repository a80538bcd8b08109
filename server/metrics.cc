#include "server/metrics.h"

#include <map>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "server/process_metrics.h"

namespace expertd {
namespace {

constexpr const char* kRpcNames[kRpcCount] = {"Forward",    "ForwardStream",    "ListLayers",     "GetServerInfo",
                                              "ModelInfer", "ModelStreamInfer", "InferenceQuery", "Session",
                                              "Ring",       "LoadCheckpoint",   "UnloadLayer"};

enum Stage { kDecode, kQueue, kStageIn, kRoute, kGemm, kCombine, kStageOut, kWrite };
constexpr const char* kStageNames[] = {"decode", "queue", "stage_in", "route", "gemm", "combine", "stage_out", "write"};

// What a code means for a request that was refused before it was queued.
constexpr std::pair<absl::StatusCode, const char*> kRejectReasons[] = {
    {absl::StatusCode::kInvalidArgument, "invalid"},         {absl::StatusCode::kNotFound, "unknown_layer"},
    {absl::StatusCode::kFailedPrecondition, "fingerprint"},  {absl::StatusCode::kUnavailable, "loading_or_draining"},
    {absl::StatusCode::kResourceExhausted, "busy"},          {absl::StatusCode::kDeadlineExceeded, "deadline"},
    {absl::StatusCode::kUnauthenticated, "unauthenticated"}, {absl::StatusCode::kPermissionDenied, "permission"},
};

const std::vector<double>& SecondsBuckets() {
  static const auto* const buckets = new std::vector<double>{
      10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 20e-3, 50e-3, 0.1, 0.2, 0.5, 1, 2, 5, 10};
  return *buckets;
}

// 1, 2, 4, ... up to `last`.
std::vector<double> Doubling(double last) {
  std::vector<double> buckets;
  for (double bound = 1; bound <= last; bound *= 2) buckets.push_back(bound);
  return buckets;
}

template <class Builder>
auto& MakeFamily(prometheus::Registry& registry, Builder builder, const char* name, const char* help) {
  return builder.Name(name).Help(help).Register(registry);
}

prometheus::MetricFamily GaugeFamily(const char* name, const char* help) {
  prometheus::MetricFamily family;
  family.name = name;
  family.help = help;
  family.type = prometheus::MetricType::Gauge;
  return family;
}

void Add(const RequestTimes& times, RequestTimes* sum) {
  sum->decode += times.decode;
  sum->queue += times.queue;
  sum->stages.stage_in += times.stages.stage_in;
  sum->stages.route += times.stages.route;
  sum->stages.gemm += times.stages.gemm;
  sum->stages.combine += times.stages.combine;
  sum->stages.stage_out += times.stages.stage_out;
  sum->total += times.total;
}

void AddGauge(prometheus::MetricFamily& family, std::vector<prometheus::ClientMetric::Label> labels, double value) {
  prometheus::ClientMetric metric;
  metric.label = std::move(labels);
  metric.gauge.value = value;
  family.metric.push_back(std::move(metric));
}

void AddCounter(prometheus::MetricFamily& family, std::vector<prometheus::ClientMetric::Label> labels, double value) {
  family.type = prometheus::MetricType::Counter;
  prometheus::ClientMetric& metric = family.metric.emplace_back();
  metric.label = std::move(labels);
  metric.counter.value = value;
}

}  // namespace

class Metrics::LiveCollectable : public prometheus::Collectable {
 public:
  void SetRead(std::function<LiveState()> read) {
    MutexLock lock(mutex_);
    read_ = std::move(read);
  }
  void AddLayer(const std::string& layer) {
    MutexLock lock(mutex_);
    queue_of_[layer] = {};
  }
  void RemoveLayer(const std::string& layer) {
    MutexLock lock(mutex_);
    queue_of_.erase(layer);
  }

  std::vector<prometheus::MetricFamily> Collect() const override {
    MutexLock lock(mutex_);
    if (!read_) return {};
    const LiveState state = read_();
    std::map<std::string, QueueStats> queues = queue_of_;  // layers without a queue report zeros
    for (const QueueStats& queue : state.queues) queues[queue.layer] = queue;
    std::vector<prometheus::MetricFamily> families;
    const auto family = [&](const char* name, const char* help) -> prometheus::MetricFamily& {
      return families.emplace_back(GaugeFamily(name, help));
    };
    const auto gauge = [&](const char* name, const char* help, auto value) {
      AddGauge(family(name, help), {}, static_cast<double>(value));
    };
    prometheus::MetricFamily& rows = family("expertd_queue_rows", "Rows that wait for a batch.");
    for (const auto& [layer, queue] : queues) AddGauge(rows, {{"layer", layer}}, static_cast<double>(queue.rows));
    prometheus::MetricFamily& oldest =
        family("expertd_queue_oldest_seconds", "How long the oldest waiting request has waited.");
    for (const auto& [layer, queue] : queues) AddGauge(oldest, {{"layer", layer}}, queue.oldest_age_seconds);
    gauge("expertd_rows_in_flight", "Rows accepted and not yet answered.", state.rows_in_flight);
    gauge("expertd_calls", "Calls in progress: unary requests and streams.", state.calls);
    gauge("expertd_region_bytes", "Shared memory of the fast lane's sessions.", state.region_bytes);
    gauge("expertd_device_region_bytes", "Device memory of the fast lane's sessions.", state.device_region_bytes);
    gauge("expertd_unsent_bytes", "Answers that the transport has not taken yet.", state.unsent_bytes);
    gauge("expertd_engine_graphs", "Recorded batches that the engine holds for replay.", state.graphs);
    gauge("expertd_engine_staged_bytes", "Copies of waiting and running rows on the device.", state.staging.bytes);
    prometheus::MetricFamily& staged =
        family("expertd_engine_staged_rows_total", "Rows copied to the device, when they came or with their batch.");
    AddCounter(staged, {{"how", "arrival"}}, static_cast<double>(state.staging.rows_on_arrival));
    AddCounter(staged, {{"how", "batch"}}, static_cast<double>(state.staging.rows_with_batch));
    prometheus::MetricFamily& memory = family("expertd_device_memory_bytes", "Memory of the device, whoever uses it.");
    if (state.memory.total_bytes > 0) {
      AddGauge(memory, {{"kind", "total"}}, static_cast<double>(state.memory.total_bytes));
      AddGauge(memory, {{"kind", "free"}}, static_cast<double>(state.memory.free_bytes));
    }
    prometheus::MetricFamily& spans =
        family("expertd_spans_dropped_total", "Spans of sampled requests that could not be written.");
    AddCounter(spans, {}, static_cast<double>(state.dropped_spans));
    return families;
  }

 private:
  mutable Mutex mutex_;
  std::function<LiveState()> read_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, QueueStats> queue_of_ ABSL_GUARDED_BY(mutex_);
};

Metrics::Metrics(std::int64_t expert_series)
    : registry_(std::make_shared<prometheus::Registry>()),
      live_(std::make_shared<LiveCollectable>()),
      process_(std::make_shared<ProcessMetrics>()),
      experts_(std::make_shared<ExpertLoad>(expert_series)) {
  using prometheus::BuildCounter, prometheus::BuildGauge, prometheus::BuildHistogram;
  auto& requests =
      MakeFamily(*registry_, BuildCounter(), "expertd_requests_total", "Requests answered, by status code.");
  auto& seconds =
      MakeFamily(*registry_, BuildHistogram(), "expertd_request_seconds", "From arrival to the encoded answer.");
  for (int rpc = 0; rpc < kRpcCount; ++rpc) {
    request_seconds_[rpc] = &seconds.Add({{"rpc", kRpcNames[rpc]}}, SecondsBuckets());
    for (int code = 0; code < kCodes; ++code) {
      const std::string name = absl::StatusCodeToString(static_cast<absl::StatusCode>(code));
      requests_[rpc][code] = &requests.Add({{"rpc", kRpcNames[rpc]}, {"code", name}});
    }
  }
  auto& stages = MakeFamily(*registry_, BuildHistogram(), "expertd_stage_seconds", "Where a request's time went.");
  for (int stage = 0; stage < kStages; ++stage) {
    stage_seconds_[stage] = &stages.Add({{"stage", kStageNames[stage]}}, SecondsBuckets());
  }
  auto& rejected =
      MakeFamily(*registry_, BuildCounter(), "expertd_rejected_total", "Requests refused before they were queued.");
  rejected_.fill(&rejected.Add({{"reason", "other"}}));
  for (const auto& [code, reason] : kRejectReasons) {
    rejected_[static_cast<int>(code)] = &rejected.Add({{"reason", reason}});
  }
  write_timeouts_ = &MakeFamily(*registry_, BuildCounter(), "expertd_write_timeouts_total",
                                "Calls cancelled because the caller did not read its answers.")
                         .Add({});
  output_overruns_ = &MakeFamily(*registry_, BuildCounter(), "expertd_output_overruns_total",
                                 "Calls cancelled because the caller had stopped reading and held too much.")
                          .Add({});
  batch_rows_ = &MakeFamily(*registry_, BuildHistogram(), "expertd_batch_rows", "Rows of a batch.");
  batch_requests_ =
      &MakeFamily(*registry_, BuildHistogram(), "expertd_batch_requests", "Requests that shared a batch.");
  weight_bytes_ =
      &MakeFamily(*registry_, BuildGauge(), "expertd_weight_bytes", "Bytes of weights resident on the device.");
  credential_reloads_ = &MakeFamily(*registry_, BuildCounter(), "expertd_credential_reloads_total",
                                    "Changes of certificate or tokens files, by whether they could be used.");
  certificate_expiry_ = &MakeFamily(*registry_, BuildGauge(), "expertd_tls_certificate_expiry_timestamp_seconds",
                                    "When the service's certificate expires, as Unix time.");
}

const char* RpcName(Rpc rpc) { return kRpcNames[static_cast<int>(rpc)]; }

void Metrics::SetBuildInfo(const std::string& version, const EngineInfo& engine) {
  MakeFamily(*registry_, prometheus::BuildGauge(), "expertd_build_info", "Always 1; see the labels.")
      .Add({{"version", version}, {"device", engine.device}, {"numerics_id", engine.numerics_id}})
      .Set(1);
}

void Metrics::AddLayer(const Layer& layer) {
  const std::string name = layer.spec().Name();
  const prometheus::Labels labels = {{"layer", name}};
  live_->AddLayer(name);
  experts_->AddLayer(layer.spec());
  MutexLock lock(mutex_);
  // A layer that takes another's name goes on with its series.
  const LayerSeries series = {name,
                              &batch_rows_->Add(labels, Doubling(16384)),
                              &batch_requests_->Add(labels, Doubling(1024)),
                              &weight_bytes_->Add(labels),
                              {}};
  series.weight_bytes->Set(static_cast<double>(layer.weight_bytes()));
  layers_[&layer] = series;
}

void Metrics::RemoveLayer(const Layer& layer) {
  MutexLock lock(mutex_);
  const auto found = layers_.find(&layer);
  if (found == layers_.end()) return;
  const LayerSeries series = found->second;
  layers_.erase(found);
  for (const auto& [other, others] : layers_) {
    if (others.name == series.name) return;
  }
  batch_rows_->Remove(series.batch_rows);
  batch_requests_->Remove(series.batch_requests);
  weight_bytes_->Remove(series.weight_bytes);
  live_->RemoveLayer(series.name);
  experts_->RemoveLayer(series.name);
}

std::vector<std::weak_ptr<prometheus::Collectable>> Metrics::collectables() const {
  return {registry_, live_, process_, experts_};
}

void Metrics::SetLiveState(std::function<LiveState()> read) { live_->SetRead(std::move(read)); }

void Metrics::RequestDone(Rpc rpc, absl::StatusCode code, double seconds) {
  requests_[static_cast<int>(rpc)][static_cast<int>(code)]->Increment();
  request_seconds_[static_cast<int>(rpc)]->Observe(seconds);
}

void Metrics::Answered(const Layer& layer, std::int64_t rows, const RequestTimes& times) {
  const StageTimes& s = times.stages;
  const double seconds[] = {times.decode, times.queue, s.stage_in, s.route, s.gemm, s.combine, s.stage_out};
  for (int stage = kDecode; stage <= kStageOut; ++stage) stage_seconds_[stage]->Observe(seconds[stage]);
  MutexLock lock(mutex_);
  const auto found = layers_.find(&layer);
  if (found == layers_.end()) return;
  LayerTotals& totals = found->second.totals;
  ++totals.answered;
  totals.rows += rows;
  totals.last_answer_ms = absl::ToUnixMillis(absl::Now());
  Add(times, &totals.answered_seconds);
}

void Metrics::Failed(const Layer& layer, double seconds) {
  MutexLock lock(mutex_);
  const auto found = layers_.find(&layer);
  if (found == layers_.end()) return;
  ++found->second.totals.failed;
  found->second.totals.failed_seconds += seconds;
}

LayerTotals Metrics::TotalsOf(const Layer& layer) const {
  MutexLock lock(mutex_);
  const auto found = layers_.find(&layer);
  return found == layers_.end() ? LayerTotals{} : found->second.totals;
}

void Metrics::Rejected(absl::StatusCode code) { rejected_[static_cast<int>(code)]->Increment(); }

void Metrics::BatchDone(const Layer& layer, std::int64_t rows, std::int64_t requests) {
  MutexLock lock(mutex_);  // also while observing: series end with their layer
  const auto found = layers_.find(&layer);
  if (found == layers_.end()) return;
  ++found->second.totals.batches;
  found->second.batch_rows->Observe(static_cast<double>(rows));
  found->second.batch_requests->Observe(static_cast<double>(requests));
}

void Metrics::CountExperts(const Layer& layer, absl::Span<const std::int32_t> ids) {
  experts_->Count(layer.spec(), ids);
}

void Metrics::WriteDone(double seconds) { stage_seconds_[kWrite]->Observe(seconds); }

void Metrics::WriteTimedOut(int calls) { write_timeouts_->Increment(calls); }

void Metrics::OutputOverrun(int calls) { output_overruns_->Increment(calls); }

void Metrics::CredentialsReloaded(const std::string& what, bool ok) {
  credential_reloads_->Add({{"what", what}, {"result", ok ? "ok" : "failed"}}).Increment();
}

void Metrics::SetCertificateExpiry(double unix_seconds) { certificate_expiry_->Add({}).Set(unix_seconds); }

}  // namespace expertd
