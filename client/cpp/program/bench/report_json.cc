#include <cmath>
#include <nlohmann/json.hpp>

#include "client/cpp/program/bench/report.h"
#include "client/cpp/program/layers.h"

namespace expertd::client {
namespace {

using nlohmann::ordered_json;

ordered_json EstimateJson(const Estimate& estimate) {
  ordered_json json = {{"mean", estimate.mean}};
  if (!std::isnan(estimate.half_width)) json["confidence_95"] = estimate.half_width;
  return json;
}

ordered_json PercentilesJson(double mean, const std::array<double, kPercentiles.size()>& percentiles) {
  ordered_json json = {{"mean", mean}};
  for (std::size_t i = 0; i < percentiles.size(); ++i) json[kPercentiles[i].first] = percentiles[i];
  return json;
}

ordered_json StatusesJson(const Window& window) {
  ordered_json json = ordered_json::object();
  for (const auto& [code, count] : window.statuses) json[absl::StatusCodeToString(code)] = count;
  return json;
}

ordered_json ServerJson(const ServerPeriod& server) {
  ordered_json json;
  for (const ServerPeriod::Stage& stage : server.stages) json["stages_us_mean"][stage.name] = stage.mean_us;
  json["batches"] = server.batches;
  json["batch_rows"] = server.batch_rows;
  for (const Bucket& bucket : server.batches_by_rows) {
    ordered_json most = std::isinf(bucket.most) ? ordered_json("inf") : ordered_json(bucket.most);
    json["batches_by_rows"].push_back({{"most_rows", most}, {"batches", bucket.count}});
  }
  for (const auto& [reason, count] : server.refused) json["refused"][reason] = count;
  return json;
}

ordered_json WindowJson(const Window& window) {
  return {{"seconds", window.seconds},
          {"operations", window.operations()},
          {"statuses", StatusesJson(window)},
          {"answered_per_second", window.CompletedPerSecond()},
          {"rows_per_second", window.RowsPerSecond()},
          {"p50_us", static_cast<double>(window.latency.Percentile(0.5)) / 1000},
          {"p99_us", static_cast<double>(window.latency.Percentile(0.99)) / 1000}};
}

ordered_json PointJson(const BenchReport& report, const Point& point) {
  const LoadResult& result = point.result;
  const Summary summary = Summarise(point);
  ordered_json json;
  json[report.options.open_loop() ? "offered_per_second" : "concurrency"] = point.load;
  json["requests"] = result.total.latency.count();
  json["requests_per_second"] = summary.per_second.mean;
  json["rows_per_second"] = summary.rows_per_second.mean;
  json["windows_estimate"] = {{"p99_us", EstimateJson(summary.p99_us)},
                              {"requests_per_second", EstimateJson(summary.per_second)},
                              {"rows_per_second", EstimateJson(summary.rows_per_second)}};
  json["latency_us"] = PercentilesJson(summary.latency_mean_us, summary.latency_us);
  json["service_us"] = PercentilesJson(summary.service_mean_us, summary.service_us);
  json["statuses"] = StatusesJson(result.total);
  json["failed_share"] = summary.failed_share;
  json["batch_rows_mean"] = summary.batch_rows;
  json["batch_requests_mean"] = summary.batch_requests;
  for (const auto& [rows, count] : result.counts.batch_rows)
    json["answers_by_batch_rows"][std::to_string(rows)] = count;
  for (std::size_t i = 0; i < kStages.size(); ++i) json["stages_us_mean"][kStages[i]] = summary.stage_us[i];
  json["wire_and_client_us_mean"] = summary.wire_us;
  if (report.layers.size() > 1) {
    for (std::size_t i = 0; i < report.layers.size(); ++i) {
      const Histogram& calls = result.counts.calls[i];
      json["layers_us"][LayerName(report.layers[i])] = {{"p50", static_cast<double>(calls.Percentile(0.5)) / 1000},
                                                        {"p99", static_cast<double>(calls.Percentile(0.99)) / 1000}};
    }
  }
  for (const Window& window : result.windows) json["windows"].push_back(WindowJson(window));
  if (point.server.has_value()) json["server_metrics"] = ServerJson(*point.server);
  json["load_tester"] = {{"cpu_seconds", result.own.cpu_seconds},
                         {"wall_seconds", result.own.wall_seconds},
                         {"cores", result.own.cores},
                         {"send_lag_p99_us", static_cast<double>(result.counts.send_lag.Percentile(0.99)) / 1000},
                         {"held_back", result.counts.held_back},
                         {"notes", Remarks(point)}};
  if (point.violation.has_value()) json["violation"] = *point.violation;
  if (!result.counts.first_error.ok()) json["first_error"] = std::string(result.counts.first_error.message());
  if (!result.broken.ok()) json["stream_ended"] = std::string(result.broken.message());
  return json;
}

ordered_json LayerJson(const v1::Layer& layer) {
  return {{"name", LayerName(layer)},
          {"fingerprint", layer.fingerprint()},
          {"hidden_size", layer.hidden_size()},
          {"num_experts", layer.num_experts()},
          {"experts_per_token", layer.experts_per_token()},
          {"intermediate_size", layer.intermediate_size()},
          {"weight_dtype", layer.weight_dtype()}};
}

ordered_json LoadJson(const BenchReport& report) {
  const LoadOptions& options = report.options;
  ordered_json json = {{"loop", options.open_loop() ? "open" : "closed"},
                       {"mode", ModeName(options.mode)},
                       {"connections", report.connections},
                       {"rows_per_request", options.rows.text()},
                       {"routing", report.routing},
                       {"seed", options.seed},
                       {"windows", options.windows},
                       {"window_seconds", report.headline().result.windows.front().seconds}};
  if (options.open_loop()) json["arrivals"] = ArrivalName(options.arrivals);
  return json;
}

}  // namespace

std::string FormatJson(const BenchReport& report) {
  ordered_json json;
  json["endpoint"] = report.endpoint;
  json["date"] = report.date;
  json["server"] = {{"version", report.server.version()},
                    {"device", report.server.device()},
                    {"numerics_id", report.server.numerics_id()}};
  json["layer"] = LayerJson(report.layers.front());
  json["layers"] = report.layers.size();
  json["load"] = LoadJson(report);
  json.update(PointJson(report, report.headline()));
  if (report.slo.has_value()) json["slo"] = report.slo->text;
  if (report.swept) {
    for (const Point& point : report.points) json["points"].push_back(PointJson(report, point));
    json["knee"] = report.knee.has_value() ? ordered_json(*report.knee) : ordered_json(nullptr);
  }
  if (report.check.has_value()) {
    json["check"] = {{"answers", report.check->answers},
                     {"rows", report.check->rows},
                     {"differing", report.check->differing},
                     {"differences", report.check->differences}};
  }
  json["passed"] = report.Passed();
  // Model names and messages are the server's: what is no UTF-8 in them must not end the report.
  return json.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace expertd::client
