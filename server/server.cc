#include "server/server.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/access/access.h"
#include "server/access/security.h"
#include "server/admin/admin_service.h"
#include "server/admin/layer_loader.h"
#include "server/call_registry.h"
#include "server/health.h"
#include "server/kserve/inference_service.h"
#include "server/lane/fast_lane.h"
#include "server/layer_table.h"
#include "server/listeners.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/metrics_listener.h"
#include "server/reflection_service.h"
#include "server/request_path.h"
#include "server/scheduler/admission.h"
#include "server/scheduler/scheduler.h"
#include "server/self_probe.h"
#include "server/service.h"
#include "server/trace/span_writer.h"

namespace expertd {
namespace {

// When gRPC shuts down it cuts off whatever arrives in that moment (CANCELLED). So callers that call again and again
// are refused for a while before (UNAVAILABLE), and turn away.
constexpr std::chrono::milliseconds kRefuseFor{100};

constexpr std::int64_t kSmallFieldsBytes = 64 << 10;
constexpr std::int64_t kMaxGrpcMessageBytes = std::numeric_limits<int>::max();
// gRPC's own limit lies so far above ours that a request which is too large for us is refused by us, with a reason.
constexpr std::int64_t kGrpcLimitFactor = 2;
constexpr std::chrono::milliseconds kWatchEvery{250};
constexpr std::chrono::milliseconds kProbeTimeout{2000};
constexpr int kProbePatience = 3;
constexpr std::chrono::seconds kWaitForTransport{5};

RequestLimits LimitsOf(const ServerOptions& options, const EngineInfo& engine) {
  return {.max_rows = options.max_rows_per_request,
          .max_k = engine.max_k,
          .default_timeout = std::chrono::milliseconds(options.default_timeout_ms),
          .refuse_non_finite = options.refuse_non_finite,
          .count_experts = options.expert_series > 0};
}

SchedulerOptions SchedulingOf(const ServerOptions& options, const EngineInfo& engine) {
  // A device that hangs would take the event thread along, and with it the answer that says so.
  const bool computes_here = engine.device == "cpu" || engine.device == "null";
  return {.max_batch_rows = options.max_batch_rows,
          .batch_window = std::chrono::microseconds(options.batch_window_us),
          .tenant_weights = *TenantWeights::Parse(options.tenant_weights),  // checked by ServerOptions::Validate
          .inline_limit = std::chrono::microseconds(computes_here ? options.inline_batch_us : 0),
          .stage_batches_ahead = options.stage_batches_ahead,
          .busy_poll = std::chrono::microseconds(options.busy_poll_us)};
}

OutputLimits OutputOf(const ServerOptions& options) {
  return {.write_timeout = std::chrono::milliseconds(options.write_timeout_ms),
          .call_bytes = options.output_mib_per_call << 20,
          .peer_bytes = options.output_mib_per_connection << 20,
          .server_bytes = options.output_mib << 20};
}

absl::StatusOr<std::unique_ptr<SpanWriter>> OpenSpans(const ServerOptions& options) {
  if (options.trace_file.empty()) return nullptr;
  return SpanWriter::Open(options.trace_file, std::string(kVersion));
}

AdmissionLimits BudgetOf(const ServerOptions& options) {
  return {.max_rows = options.max_queued_rows,
          .max_bytes = options.buffer_mib << 20,
          .weights = *TenantWeights::Parse(options.tenant_weights)};
}

FastLaneOptions LaneOf(const ServerOptions& options) {
  return {.socket_path = options.fast_lane_socket,
          .max_bytes = static_cast<std::uint64_t>(options.fast_lane_mib) << 20,
          .max_device_bytes = static_cast<std::uint64_t>(options.fast_lane_device_mib) << 20,
          .max_bytes_per_session = static_cast<std::uint64_t>(options.fast_lane_session_mib) << 20,
          .max_regions_per_session = options.fast_lane_regions,
          .max_ring_slots = static_cast<std::uint32_t>(options.max_in_flight_per_stream),
          .spin = std::chrono::microseconds(options.fast_lane_spin_us)};
}

LoadLimits LoadsOf(const ServerOptions& options, const std::vector<PlannedLayer>& plan, const EngineInfo& engine) {
  return {.max_hidden_size = LargestHiddenSize(options, plan),
          .weight_budget_bytes = options.weight_budget_mib << 20,
          .host_memory = engine.device == "cpu"};
}

v1::GetServerInfoResponse InfoOf(const ServerOptions& options, const EngineInfo& engine,
                                 std::int64_t max_message_bytes) {
  v1::GetServerInfoResponse info;
  info.set_version(std::string(kVersion));
  info.set_device(absl::StrCat(engine.device, ": ", engine.description));
  info.set_numerics_id(engine.numerics_id);
  for (const char* feature : {"server_routed", "pre_routed", "return_routing", "stream_cancel", "fp8_rows"})
    info.add_features(feature);
  info.set_max_rows_per_request(options.max_rows_per_request);
  info.set_max_rows_per_batch(std::min(options.max_batch_rows, engine.max_batch_rows));
  info.set_max_k(static_cast<std::uint32_t>(engine.max_k));
  info.set_max_message_bytes(static_cast<std::uint64_t>(max_message_bytes));
  info.set_max_in_flight_per_stream(static_cast<std::uint32_t>(options.max_in_flight_per_stream));
  info.set_default_timeout_us(static_cast<std::uint64_t>(options.default_timeout_ms) * 1000);
  info.set_max_queued_rows(options.max_queued_rows);
  if (options.fast_lane_socket.empty()) return info;
  info.add_features("fast_lane");
  if (options.fast_lane_device_mib > 0 && !engine.device_uuid.empty()) info.add_features("fast_lane_device");
  info.set_max_region_bytes(static_cast<std::uint64_t>(options.fast_lane_session_mib) << 20);
  info.set_max_regions_per_session(static_cast<std::uint32_t>(options.fast_lane_regions));
  return info;
}

kserve::InferenceLimits InferenceLimitsOf(const ServerOptions& options, std::int64_t max_message_bytes) {
  return {.max_rows = options.max_rows_per_request,
          .max_message_bytes = max_message_bytes,
          .max_in_flight_per_stream = options.max_in_flight_per_stream,
          .shared_memory = options.kserve_shared_memory};
}

}  // namespace

// What the scheduler tells, passed on to who wants to know.
class BatchObserver : public SchedulerObserver {
 public:
  BatchObserver(Metrics& metrics, Health& health, Server::Hooks hooks)
      : metrics_(metrics), health_(health), hooks_(std::move(hooks)) {}

  void BatchDone(const Layer& layer, std::int64_t rows, std::int64_t requests, const StageTimes&) override {
    metrics_.BatchDone(layer, rows, requests);
  }
  void EngineLost(const absl::Status& reason) override {
    health_.Dead();
    if (hooks_.on_engine_lost) hooks_.on_engine_lost(reason);
  }

 private:
  Metrics& metrics_;
  Health& health_;
  const Server::Hooks hooks_;
};

// In the order of construction: each part refers to parts above it only.
struct Server::State {
  State(const ServerOptions& server_options, Security the_security, std::unique_ptr<SpanWriter> the_spans,
        std::unique_ptr<Engine> the_engine, std::vector<PlannedLayer> the_plan, Hooks hooks,
        std::int64_t max_message_bytes)
      : options(server_options),
        security(std::move(the_security)),
        access(security.access(options)),
        spans(std::move(the_spans)),
        engine(std::move(the_engine)),
        plan(std::move(the_plan)),
        metrics(options.expert_series),
        admission(std::make_shared<Admission>(BudgetOf(options))),
        listener_lost(hooks.on_listener_lost),
        observer(metrics, health, std::move(hooks)),
        scheduler(*engine, *admission, SchedulingOf(options, engine->info()), time, observer),
        path(*engine, admission, scheduler, layers, regions, metrics, LimitsOf(options, engine->info()), spans.get()),
        calls(OutputOf(options)),
        service(access, path, calls, layers, lane, InfoOf(options, engine->info(), max_message_bytes)),
        inference(access, path, calls, layers, health, InferenceLimitsOf(options, max_message_bytes)),
        reflection_service(access, IsLocalAddress(options.listen)),
        loader(*engine, layers, metrics, health, LoadsOf(options, plan, engine->info())) {
    if (options.model_root.empty()) return;
    admin = std::make_unique<AdminService>(access, calls, loader, metrics, options.model_root);
  }

  absl::Status Bind(std::int64_t max_message_bytes);
  // The watch's thread: callers that do not read, a device that does not answer, credentials that were renewed.
  void Watch();
  void CancelSlowReaders();
  void LookForHang();
  void RotateStreams();
  // The probe's thread: whether the listener still answers.
  void Probe();
  bool StopsBefore(Clock::time_point deadline);

  const ServerOptions options;
  const Security security;
  const Access access;
  const std::unique_ptr<SpanWriter> spans;  // null: no tracing
  std::unique_ptr<Engine> engine;
  const std::vector<PlannedLayer> plan;
  LayerTable layers;
  Metrics metrics;
  Health health;
  TimeSource time;
  const std::shared_ptr<Admission> admission;
  const std::function<void(const absl::Status& reason)> listener_lost;
  BatchObserver observer;
  Scheduler scheduler;
  RegionTable regions;
  RequestPath path;
  CallRegistry calls;
  std::unique_ptr<FastLane> lane;  // null: off
  ExpertdService service;
  kserve::InferenceService inference;
  ReflectionService reflection_service;
  LayerLoader loader;
  std::unique_ptr<AdminService> admin;  // null without a model root
  GrpcListener service_listener;
  GrpcListener health_listener;
  std::unique_ptr<MetricsListener> metrics_listener;
  BoundAddresses addresses;

  Mutex mutex;
  CondVar stopped;
  bool stopping ABSL_GUARDED_BY(mutex) = false;
  std::thread watch;
  std::thread probe;
};

absl::StatusOr<std::int64_t> MaxMessageBytes(const ServerOptions& options, std::int64_t max_k,
                                             const std::vector<PlannedLayer>& plan) {
  std::int64_t row_bytes = BytesOf(DType::kF32, LargestHiddenSize(options, plan));
  row_bytes += max_k * static_cast<std::int64_t>(sizeof(std::int32_t) + sizeof(float));
  const std::int64_t most = (kMaxGrpcMessageBytes / kGrpcLimitFactor - kSmallFieldsBytes) / row_bytes;
  if (options.max_rows_per_request > most) {
    return absl::InvalidArgumentError(absl::StrCat("--max-rows-per-request ", options.max_rows_per_request,
                                                   ": at most ", most, " rows of these layers fit in a gRPC message"));
  }
  return options.max_rows_per_request * row_bytes + kSmallFieldsBytes;
}

absl::StatusOr<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, std::unique_ptr<Engine> engine,
                                                      std::vector<PlannedLayer> plan, Hooks hooks) {
  if (absl::Status status = options.Validate(); !status.ok()) return status;
  absl::StatusOr<std::int64_t> max_message_bytes = MaxMessageBytes(options, engine->info().max_k, plan);
  if (!max_message_bytes.ok()) return max_message_bytes.status();
  absl::StatusOr<Security> security = OpenSecurity(options);
  if (!security.ok()) return security.status();
  absl::StatusOr<std::unique_ptr<SpanWriter>> spans = OpenSpans(options);
  if (!spans.ok()) return spans.status();
  Health::Enable();
  auto state = std::make_unique<State>(options, *std::move(security), *std::move(spans), std::move(engine),
                                       std::move(plan), std::move(hooks), *max_message_bytes);
  for (const PlannedLayer& layer : state->plan) {
    if (absl::Status status = state->layers.Announce(layer.spec); !status.ok()) return status;
  }
  std::unique_ptr<Server> server(new Server(std::move(state)));
  if (absl::Status status = server->state_->Bind(*max_message_bytes); !status.ok()) return status;
  return server;
}

absl::Status Server::State::Bind(std::int64_t max_message_bytes) {
  metrics.SetBuildInfo(std::string(kVersion), engine->info());
  security.Describe(metrics);
  metrics.SetLiveState([this] {
    return LiveState{.memory = engine->memory(),
                     .queues = scheduler.Stats(),
                     .rows_in_flight = admission->rows_in_flight(),
                     .unsent_bytes = calls.unsent_bytes(),
                     .calls = calls.size(),
                     .region_bytes = lane ? lane->bytes_in_use() : 0,
                     .device_region_bytes = lane ? lane->device_bytes_in_use() : 0,
                     .dropped_spans = spans ? spans->dropped() : 0,
                     .graphs = engine->graphs(),
                     .staging = engine->staging()};
  });
  if (!options.fast_lane_socket.empty()) {
    absl::StatusOr<std::unique_ptr<FastLane>> started = FastLane::Start(LaneOf(options), *engine, regions);
    if (!started.ok()) return started.status();
    lane = *std::move(started);
  }
  const GrpcListenerOptions service_options = {.address = options.listen,
                                               .max_message_bytes = kGrpcLimitFactor * max_message_bytes,
                                               .max_streams_per_connection = options.max_streams_per_connection,
                                               .memory_mib = options.grpc_memory_mib,
                                               .max_connection_age_ms = options.max_connection_age_ms,
                                               .credentials = security.ServerCredentials()};
  std::vector<grpc::Service*> services = {&service, &inference, &reflection_service};
  std::vector<std::string> names = {v1::Expertd::service_full_name(),
                                    ::inference::GRPCInferenceService::service_full_name(), "grpc.health.v1.Health",
                                    reflection::ServerReflection::service_full_name()};
  if (admin != nullptr) {
    services.push_back(admin.get());
    names.emplace_back(v1::Admin::service_full_name());
  }
  reflection_service.Announce(std::move(names));
  absl::StatusOr<GrpcListener> bound = Listen(service_options, services);
  if (!bound.ok()) return bound.status();
  service_listener = *std::move(bound);
  health.Attach(*service_listener.server);
  addresses.service = service_listener.address;
  if (!options.health_address.empty()) {
    absl::StatusOr<GrpcListener> probes = Listen({.address = options.health_address}, {});
    if (!probes.ok()) return probes.status();
    health_listener = *std::move(probes);
    health.Attach(*health_listener.server);
    addresses.health = health_listener.address;
  }
  if (!options.metrics_address.empty()) {
    absl::StatusOr<std::unique_ptr<MetricsListener>> scrapes =
        MetricsListener::Start(options.metrics_address, security.metrics_certificates, metrics);
    if (!scrapes.ok()) return scrapes.status();
    metrics_listener = *std::move(scrapes);
    addresses.metrics = metrics_listener->address();
  }
  watch = std::thread([this] { Watch(); });
  if (options.self_probe_interval_ms > 0) probe = std::thread([this] { Probe(); });
  return absl::OkStatus();
}

void Server::State::Watch() {
  const std::chrono::milliseconds shortest(std::min(options.write_timeout_ms / 10, options.HangTimeoutMs()));
  const auto every = std::min(kWatchEvery, std::max(shortest / 4, std::chrono::milliseconds(1)));
  while (!StopsBefore(Clock::now() + every)) {
    CancelSlowReaders();
    LookForHang();
    security.Refresh(metrics);
    RotateStreams();
  }
}

void Server::State::Probe() {
  const std::chrono::milliseconds every(options.self_probe_interval_ms);
  const bool tls = security.certificates != nullptr;
  ProbeJudge judge(kProbePatience);
  while (!StopsBefore(Clock::now() + every)) {
    const absl::Status answer = ProbeListener(addresses.service, tls, std::min(every, kProbeTimeout));
    if (!answer.ok()) Log(LogLevel::kWarning, "self-probe failed", {{"reason", answer.message()}});
    if (!judge.Dead(answer.ok())) continue;
    health.Dead();
    if (listener_lost) listener_lost(answer);
    return;
  }
}

void Server::State::RotateStreams() {
  if (options.max_connection_age_ms == 0) return;
  calls.RotateOlderThan(Clock::now() - std::chrono::milliseconds(options.max_connection_age_ms * 8 / 10));
}

void Server::State::CancelSlowReaders() {
  const SlowReaders cancelled = calls.CancelSlowReaders(Clock::now());
  metrics.WriteTimedOut(cancelled.timed_out);
  metrics.OutputOverrun(cancelled.over_budget);
  if (cancelled.timed_out + cancelled.over_budget == 0) return;
  Log(LogLevel::kWarning, "callers that do not read were cancelled",
      {{"write_timeout_ms", options.write_timeout_ms},
       {"timed_out", cancelled.timed_out},
       {"over_output_budget", cancelled.over_budget}});
}

void Server::State::LookForHang() {
  const auto ran = std::chrono::duration_cast<std::chrono::milliseconds>(scheduler.LongestRun());
  if (ran.count() <= options.HangTimeoutMs()) return;
  scheduler.AbandonEngine(
      absl::InternalError(absl::StrCat("device ", engine->info().device, ": a batch has run for ", ran.count(),
                                       " ms (limit --hang-timeout-ms ", options.HangTimeoutMs(), ")")));
}

bool Server::State::StopsBefore(Clock::time_point deadline) {
  MutexLock lock(mutex);
  while (!stopping && stopped.WaitUntil(mutex, deadline)) continue;
  return stopping;
}

Server::Server(std::unique_ptr<State> state) : state_(std::move(state)) {}

Server::~Server() {
  State& s = *state_;
  {
    MutexLock lock(s.mutex);
    s.stopping = true;
    s.stopped.NotifyAll();
  }
  for (std::thread* thread : {&s.watch, &s.probe}) {
    if (thread->joinable()) thread->join();
  }
  s.health.Leave();
  s.health.Detach();
  s.service_listener.Stop();
  s.health_listener.Stop();
  s.metrics_listener.reset();
  s.lane.reset();  // no session is left, and so nothing that its thread could still submit
  // The transport may hold answers for a moment longer than the calls; the engine owns their rows.
  const Clock::time_point deadline = Clock::now() + kWaitForTransport;
  while (s.admission->bytes_in_flight() > 0 && Clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (s.admission->bytes_in_flight() > 0) {
    Log(LogLevel::kError, "the transport still holds rows: the engine is left alive");
    static_cast<void>(s.engine.release());
    static_cast<void>(state_.release());  // the scheduler's threads refer to the engine
  }
}

absl::Status Server::Load(const std::function<bool()>& stop) {
  State& s = *state_;
  if (absl::Status status = s.loader.LoadEach(s.plan, stop); !status.ok()) return status;
  s.health.Ready();
  if (s.admin != nullptr) s.admin->SetReady();
  return absl::OkStatus();
}

void Server::LeaveHealth() { state_->health.Leave(); }

bool Server::Drain(Clock::time_point deadline) {
  State& s = *state_;
  s.health.Leave();
  s.calls.BeginDrain();
  // The calls first: what they have accepted may still be on its way to the scheduler, which would refuse it.
  const bool ended = s.calls.WaitUntilEmpty(deadline);
  const bool answered = s.scheduler.Drain(deadline);
  std::this_thread::sleep_for(kRefuseFor);
  return answered && ended;
}

const BoundAddresses& Server::addresses() const { return state_->addresses; }

}  // namespace expertd
