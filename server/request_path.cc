#include "server/request_path.h"

#include <grpcpp/support/slice.h>

#include <algorithm>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/codec/f8_rows.h"
#include "server/log.h"
#include "server/status.h"
#include "server/trace/request_trace.h"

namespace expertd {
namespace {

std::int64_t RoutingBytes(std::int64_t rows, std::int64_t k) {
  return rows * k * static_cast<std::int64_t>(sizeof(std::int32_t) + sizeof(float));
}

// The job's routing buffer holds ids, then weights.
std::int32_t* RoutingIds(const Job& job) { return reinterpret_cast<std::int32_t*>(job.routing.data()); }
float* RoutingWeights(const Job& job, std::int64_t k) {
  return reinterpret_cast<float*>(RoutingIds(job) + job.rows * k);
}

// e4m3 is for the wire; the engine sees bf16.
DType ComputedAs(DType wire) { return wire == DType::kF8E4M3 ? DType::kBF16 : wire; }

std::int64_t OutputRoom(const ForwardHead& head, const Job& job) {
  const std::int64_t hidden_size = job.layer->spec().hidden_size;
  return head.output_dtype == DType::kF8E4M3 ? F8AnswerRoom(job.rows, hidden_size, head.output_scale_block)
                                             : BytesOf(job.output_dtype, job.rows * hidden_size);
}

std::int64_t RoutingK(const Job& job) { return job.k > 0 ? job.k : job.layer->spec().experts_per_token; }
bool NeedsRouting(const Job& job) { return job.k > 0 || job.return_routing; }

Clock::time_point DeadlineOf(const ForwardHead& head, const Arrival& arrival,
                             std::chrono::microseconds default_timeout) {
  constexpr std::uint64_t kForever = 365ull * 86400 * 1'000'000;
  Clock::time_point deadline = arrival.call_deadline;
  if (head.timeout_us > 0 && head.timeout_us < kForever) {
    deadline = std::min(deadline, arrival.time + std::chrono::microseconds(head.timeout_us));
  }
  const bool none = head.timeout_us == 0 && deadline == Clock::time_point::max();
  return none ? arrival.time + default_timeout : deadline;
}

absl::Status TakeRows(const ForwardHead& head, Slices slices, Job& job) {
  if (head.region.has_value()) return absl::OkStatus();  // they are used where they lie
  if (head.dtype == DType::kF8E4M3) {
    return DecodeF8Rows(slices, head.hidden_states, head.scales, job.rows, job.layer->spec().hidden_size,
                        head.scale_block, job.input.data());
  }
  Gather(slices, head.hidden_states, job.input.data());
  return absl::OkStatus();
}

void ReleaseJob(void* job) {
  std::unique_ptr<Job> owned(static_cast<Job*>(job));
  // The buffer before the ticket: whoever sees the budget empty may take the engine down.
  owned->output.Reset();
}

// Takes what the answer does not refer to out of the job, and hands the rest to the transport.
grpc::ByteBuffer MakeMessage(std::unique_ptr<Job> job, const std::string& prefix, std::int64_t output_bytes) {
  job->input.Reset();
  job->routing.Reset();
  job->ticket.ReturnRows();
  if (output_bytes == 0) {
    const grpc::Slice slice(prefix);
    return grpc::ByteBuffer(&slice, 1);
  }
  std::byte* output = job->output.data();
  const grpc::Slice slices[2] = {
      grpc::Slice(prefix), grpc::Slice(output, static_cast<std::size_t>(output_bytes), &ReleaseJob, job.release())};
  return grpc::ByteBuffer(slices, 2);
}

void LogRequest(const ForwardHead& head, const absl::Status& status, double total) {
  const LogLevel level = status.code() == absl::StatusCode::kInternal ? LogLevel::kError : LogLevel::kDebug;
  if (!LogEnabled(level)) return;
  Log(level, "request",
      {{"id", static_cast<std::int64_t>(head.request_id)},
       {"model", head.model},
       {"layer", static_cast<std::int64_t>(head.layer)},
       {"rows", head.rows},
       {"code", absl::StatusCodeToString(status.code())},
       {"message", status.message()},
       {"total_us", static_cast<std::int64_t>(total * 1e6)},
       {"traceparent", head.traceparent}});
}

// What the answer needs and the job does not know.
struct Pending {
  ForwardHead head;
  Rpc rpc;
  double decode = 0;  // seconds
  AnswerForm form;
  AnswerFn answer;
  SpanWriter* spans = nullptr;
  std::shared_ptr<RequestSpan> span;  // null: nobody wants to see it
};

// The time between the batch's end and the answer, spent behind the batch's other answers, is part of handing the rows
// out: so the stages sum to the total.
RequestTimes TimesOf(double decode, const BatchReport& report, double total) {
  RequestTimes times = {decode, report.queue, report.stages, total};
  StageTimes& stages = times.stages;
  const double known = decode + report.queue + stages.stage_in + stages.route + stages.gemm + stages.combine;
  stages.stage_out = std::max(stages.stage_out, total - known);
  return times;
}

// The answer's output as it lies in the job's output buffer.
struct AnswerBytes {
  std::int64_t output = 0;  // of the field
  std::int64_t scales = 0;  // of the field behind it, without its tag
  std::int64_t all = 0;
};

AnswerBytes PrepareOutput(const ForwardHead& head, Job& job) {
  const std::int64_t hidden_size = job.layer->spec().hidden_size;
  if (job.rows == 0 || head.region.has_value()) return {};
  if (head.output_dtype != DType::kF8E4M3) {
    const std::int64_t bytes = BytesOf(job.output_dtype, job.rows * hidden_size);
    return {.output = bytes, .all = bytes};
  }
  const std::int64_t block = head.output_scale_block;
  return {.output = job.rows * hidden_size,
          .scales = BytesOf(DType::kF32, job.rows * ScalesPerRow(hidden_size, block)),
          .all = EncodeF8Answer(job.output.data(), job.rows, hidden_size, block)};
}

grpc::ByteBuffer Answer(Metrics& metrics, const Pending& pending, std::unique_ptr<Job> job, const BatchReport& report) {
  const AnswerBytes bytes = PrepareOutput(pending.head, *job);
  const RequestTimes times = TimesOf(pending.decode, report, Seconds(Clock::now() - job->arrival));
  ResponseHead head = {.request_id = pending.head.request_id,
                       .rows = job->rows,
                       .dtype = pending.head.output_dtype,
                       .decode = times.decode,
                       .queue = times.queue,
                       .total = times.total,
                       .stages = times.stages,
                       .batch_rows = report.rows,
                       .batch_requests = report.requests,
                       .fingerprint = job->layer->fingerprint(),
                       .scales_bytes = bytes.scales};
  if (pending.head.return_routing && job->rows > 0) {
    head.k = RoutingK(*job);
    head.topk_ids = RoutingIds(*job);
    head.topk_weights = RoutingWeights(*job, head.k);
  }
  if (NeedsRouting(*job) && job->rows > 0) {
    metrics.CountExperts(*job->layer, {RoutingIds(*job), static_cast<std::size_t>(job->rows * RoutingK(*job))});
  }
  const std::string prefix = pending.form.encode(head, static_cast<std::uint64_t>(bytes.output));
  metrics.Answered(*job->layer, job->rows, times);
  return MakeMessage(std::move(job), prefix, pending.form.deliver ? 0 : bytes.all);
}

void Complete(Metrics& metrics, const Pending& pending, std::unique_ptr<Job> job, absl::Status status,
              const BatchReport& report) {
  const Clock::time_point arrival = job->arrival;
  const std::int64_t output_bytes = BytesOf(job->output_dtype, job->rows * job->layer->spec().hidden_size);
  grpc::ByteBuffer message;
  if (status.ok() && pending.form.deliver) {
    status = pending.form.deliver({job->output.data(), static_cast<std::size_t>(output_bytes)});
  }
  if (status.ok()) message = Answer(metrics, pending, std::move(job), report);
  const double total = Seconds(Clock::now() - arrival);
  if (!status.ok()) metrics.Failed(*job->layer, total);
  metrics.RequestDone(pending.rpc, status.code(), total);
  LogRequest(pending.head, status, total);
  EndSpan(pending.spans, pending.span, status, TimesOf(pending.decode, report, total), report);
  pending.answer(std::move(status), std::move(message));
}

}  // namespace

std::optional<Scheduler::JobId> RequestPath::Submit(absl::StatusOr<ForwardHead> head, Slices slices,
                                                    const Arrival& arrival, AnswerFn answer) {
  if (head.ok() && head->traceparent.empty()) head->traceparent = std::string(arrival.traceparent);
  absl::StatusOr<std::unique_ptr<Job>> made = head.ok() ? MakeJob(*head, slices, arrival) : head.status();
  const double decode = Seconds(Clock::now() - arrival.time);
  std::shared_ptr<RequestSpan> span;
  if (head.ok()) span = StartSpan(spans_, *head, arrival.rpc, arrival.tenant, arrival.time);
  if (!made.ok()) {
    metrics_.Rejected(made.status().code());
    metrics_.RequestDone(arrival.rpc, made.status().code(), decode);
    LogRequest(head.ok() ? *head : ForwardHead{}, made.status(), decode);
    EndSpan(spans_, span, made.status(), {.decode = decode, .total = decode}, BatchReport{});
    answer(made.status(), grpc::ByteBuffer());
    return std::nullopt;
  }
  std::unique_ptr<Job> job = *std::move(made);
  Pending pending = {*std::move(head), arrival.rpc, decode, arrival.form, std::move(answer), spans_, std::move(span)};
  if (job->rows == 0) {
    Complete(metrics_, pending, std::move(job), absl::OkStatus(), BatchReport{});
    return std::nullopt;
  }
  job->done = [&metrics = metrics_, pending = std::move(pending)](std::unique_ptr<Job> done, absl::Status status,
                                                                  const BatchReport& report) {
    Complete(metrics, pending, std::move(done), std::move(status), report);
  };
  return scheduler_.Submit(std::move(job));
}

void RequestPath::Refused(Rpc rpc, const absl::Status& status) {
  metrics_.Rejected(status.code());
  metrics_.RequestDone(rpc, status.code(), 0);
}

absl::StatusOr<LayerPtr> RequestPath::FindLayer(const ForwardHead& head) const {
  absl::StatusOr<LayerPtr> layer = layers_.Find(head.model, head.layer);
  if (!layer.ok() || head.expected_fingerprint.empty() || head.expected_fingerprint == (*layer)->fingerprint()) {
    return layer;
  }
  return absl::FailedPreconditionError(absl::StrCat("expected_fingerprint: ", head.expected_fingerprint,
                                                    " is not that of ", (*layer)->spec().Name(), " (",
                                                    (*layer)->fingerprint(), ")"));
}

absl::StatusOr<std::unique_ptr<Job>> RequestPath::MakeJob(const ForwardHead& head, Slices slices,
                                                          const Arrival& arrival) {
  absl::StatusOr<LayerPtr> layer = FindLayer(head);
  if (!layer.ok()) return layer.status();
  const LayerSpec& spec = (*layer)->spec();
  const ForwardLimits limits = {.max_rows = limits_.max_rows, .max_k = limits_.max_k};
  if (absl::Status status = CheckAgainstLayer(head, spec, limits); !status.ok()) return status;

  auto job = std::make_unique<Job>();
  job->layer = *std::move(layer);
  job->tenant = std::string(arrival.tenant);
  job->rows = head.rows;
  job->input_dtype = ComputedAs(head.dtype);
  job->output_dtype = ComputedAs(head.output_dtype);
  job->shared_expert = head.shared_expert.value_or(!head.pre_routed);
  job->priority = head.priority;
  job->arrival = arrival.time;
  job->deadline = DeadlineOf(head, arrival, limits_.default_timeout);
  job->k = head.pre_routed ? head.k : 0;
  job->return_routing = head.return_routing || limits_.count_experts;
  if (job->rows == 0) return job;
  if (absl::Status status = FillBuffers(head, slices, *job); !status.ok()) {
    if (!absl::IsResourceExhausted(status) || RetryAfter(status)) return status;
    return RetryLater(status.message(), admission_->RetryHint());
  }
  return job;
}

absl::Status RequestPath::FillBuffers(const ForwardHead& head, Slices slices, Job& job) {
  const LayerSpec& spec = job.layer->spec();
  const std::int64_t input_bytes = BytesOf(job.input_dtype, job.rows * spec.hidden_size);
  const std::int64_t output_bytes = OutputRoom(head, job);
  const bool in_place = head.region.has_value();
  if (in_place) {
    if (absl::Status status = BorrowRows(*head.region, input_bytes, output_bytes, job); !status.ok()) return status;
  }
  struct {
    RowBuffer* buffer;
    std::int64_t bytes;
  } const wanted[] = {{&job.input, in_place ? 0 : input_bytes},
                      {&job.output, in_place ? 0 : output_bytes},
                      {&job.routing, NeedsRouting(job) ? RoutingBytes(job.rows, RoutingK(job)) : 0}};
  std::int64_t total = 0;
  for (const auto& want : wanted) total += want.bytes;
  absl::StatusOr<Ticket> ticket =
      admission_->Admit(job.rows, total, Clock::now(), job.deadline, job.priority, job.tenant);
  if (!ticket.ok()) return ticket.status();
  job.ticket = *std::move(ticket);
  for (const auto& want : wanted) {
    if (want.bytes == 0) continue;
    absl::StatusOr<RowBuffer> buffer = engine_.AcquireRows(static_cast<std::size_t>(want.bytes));
    if (!buffer.ok()) return buffer.status();
    *want.buffer = *std::move(buffer);
  }
  if (job.k > 0) {
    Gather(slices, head.topk_ids, reinterpret_cast<std::byte*>(RoutingIds(job)));
    Gather(slices, head.topk_weights, reinterpret_cast<std::byte*>(RoutingWeights(job, job.k)));
    absl::Status status = CheckRouting(RoutingIds(job), RoutingWeights(job, job.k), job.rows, job.k, spec);
    if (!status.ok()) return status;
  }
  if (absl::Status status = TakeRows(head, slices, job); !status.ok()) return status;
  std::int64_t row = 0;
  if (limits_.refuse_non_finite && HasNonFinite(job.input.data(), job.input_dtype, job.rows, spec.hidden_size, &row)) {
    return absl::InvalidArgumentError(absl::StrCat("hidden_states[", row, "] holds NaN or infinity"));
  }
  return absl::OkStatus();
}

absl::Status RequestPath::BorrowRows(const RegionRows& rows, std::int64_t input_bytes, std::int64_t output_bytes,
                                     Job& job) {
  absl::StatusOr<std::shared_ptr<Region>> region = regions_.Find(rows.handle);
  if (!region.ok()) return region.status();
  absl::StatusOr<Region::Loan> loan =
      (*region)->Lend(rows, static_cast<std::uint64_t>(input_bytes), static_cast<std::uint64_t>(output_bytes));
  if (!loan.ok()) return loan.status();
  job.input = std::move(loan->input);
  job.output = std::move(loan->output);
  job.on_device = (*region)->on_device();
  return absl::OkStatus();
}

MessageSlices::MessageSlices(const grpc::ByteBuffer& message) : lists_(std::exchange(spare_, {})) {
  if (!message.Dump(&lists_.slices).ok()) lists_.slices.clear();
  for (const grpc::Slice& slice : lists_.slices) {
    lists_.views.emplace_back(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
}

MessageSlices::~MessageSlices() {
  lists_.slices.clear();
  lists_.views.clear();
  spare_ = std::move(lists_);
}

}  // namespace expertd
