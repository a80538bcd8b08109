#include "server/trace/request_trace.h"

#include <optional>
#include <string>
#include <utility>

namespace expertd {

std::shared_ptr<RequestSpan> StartSpan(SpanWriter* spans, const ForwardHead& head, Rpc rpc, absl::string_view tenant,
                                       Clock::time_point arrival) {
  if (spans == nullptr || head.traceparent.empty()) return nullptr;
  const std::optional<TraceContext> context = ParseTraceparent(head.traceparent);
  if (!context || !context->sampled) return nullptr;
  auto span = std::make_shared<RequestSpan>();
  span->context = *context;
  span->start = std::chrono::system_clock::now() -
                std::chrono::duration_cast<std::chrono::system_clock::duration>(Clock::now() - arrival);
  span->rpc = RpcName(rpc);
  span->model = head.model;
  span->layer = static_cast<std::int64_t>(head.layer);
  span->request_id = head.request_id;
  span->rows = head.rows;
  span->tenant = std::string(tenant);
  return span;
}

void EndSpan(SpanWriter* spans, const std::shared_ptr<RequestSpan>& span, const absl::Status& status,
             const RequestTimes& times, const BatchReport& report) {
  if (span == nullptr) return;
  span->code = static_cast<int>(status.code());
  span->message = std::string(status.message());
  span->decode = times.decode;
  span->queue = times.queue;
  span->stages = times.stages;
  span->total = times.total;
  span->batch_rows = report.rows;
  span->batch_requests = report.requests;
  spans->Record(std::move(*span));
}

}  // namespace expertd
