// EncodeSpans: apart from the threads and the file.
#include <cmath>
#include <nlohmann/json.hpp>
#include <random>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "server/trace/span_writer.h"

namespace expertd {
namespace {

using nlohmann::json;

// Of the protocol: SpanKind and StatusCode.
constexpr int kInternal = 1, kServer = 2, kOk = 1, kError = 2;

std::string NewSpanId() {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  std::uint64_t id = 0;
  while (id == 0) id = random();
  return absl::StrFormat("%016x", id);
}

// OTLP's JSON writes 64-bit integers as strings.
json Attribute(const char* key, const std::string& value) {
  return {{"key", key}, {"value", {{"stringValue", value}}}};
}
json Attribute(const char* key, std::int64_t value) {
  return {{"key", key}, {"value", {{"intValue", absl::StrCat(value)}}}};
}

json MakeSpan(const RequestSpan& request, const std::string& id, absl::string_view parent, const std::string& name,
              int kind, std::int64_t start_ns, double seconds) {
  return {{"traceId", std::string(request.context.trace())},
          {"spanId", id},
          {"parentSpanId", std::string(parent)},
          {"name", name},
          {"kind", kind},
          {"startTimeUnixNano", absl::StrCat(start_ns)},
          {"endTimeUnixNano", absl::StrCat(start_ns + std::llround(seconds * 1e9))}};
}

void AddRequest(const RequestSpan& request, json* spans) {
  std::int64_t start_ns =
      std::chrono::duration_cast<std::chrono::nanoseconds>(request.start.time_since_epoch()).count();
  const std::string id = NewSpanId();
  json span = MakeSpan(request, id, request.context.parent(), absl::StrCat("expertd.v1.Expertd/", request.rpc), kServer,
                       start_ns, request.total);
  span["attributes"] = {Attribute("rpc.system", "grpc"),
                        Attribute("rpc.service", "expertd.v1.Expertd"),
                        Attribute("rpc.method", request.rpc),
                        Attribute("rpc.grpc.status_code", request.code),
                        Attribute("expertd.layer", absl::StrCat(request.model, "/", request.layer)),
                        Attribute("expertd.request_id", absl::StrCat(request.request_id)),
                        Attribute("expertd.tenant", request.tenant),
                        Attribute("expertd.rows", request.rows),
                        Attribute("expertd.batch_rows", request.batch_rows),
                        Attribute("expertd.batch_requests", request.batch_requests)};
  span["status"] = request.code == 0 ? json{{"code", kOk}} : json{{"code", kError}, {"message", request.message}};
  spans->push_back(std::move(span));

  const StageTimes& stages = request.stages;
  const std::pair<const char*, double> children[] = {
      {"decode", request.decode}, {"queue", request.queue},    {"stage_in", stages.stage_in},  {"route", stages.route},
      {"gemm", stages.gemm},      {"combine", stages.combine}, {"stage_out", stages.stage_out}};
  for (const auto& [name, seconds] : children) {
    if (seconds <= 0) continue;
    spans->push_back(MakeSpan(request, NewSpanId(), id, name, kInternal, start_ns, seconds));
    start_ns += std::llround(seconds * 1e9);
  }
}

}  // namespace

std::string EncodeSpans(const std::vector<RequestSpan>& spans, const std::string& version) {
  json list = json::array();
  for (const RequestSpan& span : spans) AddRequest(span, &list);
  const json line = {
      {"resourceSpans",
       {{{"resource", {{"attributes", {Attribute("service.name", "expertd"), Attribute("service.version", version)}}}},
         {"scopeSpans", {{{"scope", {{"name", "expertd"}, {"version", version}}}, {"spans", list}}}}}}}};
  // Names came from callers: what is no UTF-8 is replaced.
  return line.dump(-1, ' ', false, json::error_handler_t::replace);
}

}  // namespace expertd
