#include "client/cpp/program/report.h"

#include <array>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/cpp/program/layers.h"

namespace expertd::client {
namespace {

constexpr std::array<std::pair<const char*, double>, 5> kPercentiles = {
    {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1.0}}};

constexpr double kMicro = 1e-3;  // of a nanosecond count

double PerAnswer(const BenchReport& report, double sum) {
  return report.load.latency.count() == 0 ? 0 : sum / static_cast<double>(report.load.latency.count());
}

double PerSecond(const BenchReport& report, double count) {
  return report.load.seconds > 0 ? count / report.load.seconds : 0;
}

double PercentileMicros(const BenchReport& report, double fraction) {
  const auto ns = fraction < 1 ? report.load.latency.Percentile(fraction) : report.load.latency.max();
  return static_cast<double>(ns) * kMicro;
}

const char* ModeName(Mode mode) { return mode == Mode::kStream ? "stream" : "unary"; }

std::string Line(absl::string_view title, absl::string_view text) { return absl::StrFormat("%-12s%s\n", title, text); }

std::string CheckLine(const CheckResult& check) {
  const std::string compared =
      absl::StrCat(check.answers, " answers sent again alone, and ", check.rows, " of their rows one by one: ");
  return absl::StrCat(
      compared, check.differing == 0 ? "all bits are equal" : absl::StrCat(check.differing, " comparisons DIFFER"));
}

}  // namespace

bool BenchReport::Passed() const {
  if (!load.broken.ok() || load.latency.count() == 0) return false;
  for (const auto& [code, count] : load.statuses) {
    if (code != absl::StatusCode::kOk && code != absl::StatusCode::kResourceExhausted) return false;
  }
  return !check.has_value() || check->differing == 0;
}

std::string FormatTable(const BenchReport& report) {
  const LoadResult& load = report.load;
  const auto answers = static_cast<double>(load.latency.count());
  const auto rows = answers * static_cast<double>(report.options.rows);
  std::string out;
  out += Line("server",
              absl::StrCat(report.endpoint, ", ", report.server.device(), ", expertd ", report.server.version()));
  out += Line("layer", absl::StrCat(LayerName(report.layer), ": ", LayerSizes(report.layer)));
  out += Line("load", absl::StrFormat("%s, %d connections, %d requests of %d rows in flight, %s-routed, %.1f s",
                                      ModeName(report.options.mode), report.connections, report.options.concurrency,
                                      report.options.rows, report.options.pre_routed ? "pre" : "server", load.seconds));
  out += Line("requests", absl::StrFormat("%d, %.1f /s", load.latency.count(), PerSecond(report, answers)));
  out += Line("rows", absl::StrFormat("%.0f, %.1f /s", rows, PerSecond(report, rows)));
  std::string statuses;
  for (const auto& [code, count] : load.statuses)
    absl::StrAppend(&statuses, absl::StatusCodeToString(code), " ", count, "  ");
  out += Line("status", statuses);
  out += Line("batch", absl::StrFormat("%.1f rows of %.1f requests on average", PerAnswer(report, load.batch_rows),
                                       PerAnswer(report, load.batch_requests)));
  out += "\n";
  std::string head = absl::StrFormat("%-12s%10s", "latency us", "mean");
  std::string values = absl::StrFormat("%-12s%10.1f", "", load.latency.mean() * kMicro);
  for (const auto& [name, fraction] : kPercentiles) {
    absl::StrAppendFormat(&head, "%11s", name);
    absl::StrAppendFormat(&values, "%11.1f", PercentileMicros(report, fraction));
  }
  absl::StrAppend(&out, head, "\n", values, "\n\n");
  head = absl::StrFormat("%-12s", "stages us");
  values = absl::StrFormat("%-12s", "");
  for (std::size_t i = 0; i < kStages.size(); ++i) {
    absl::StrAppendFormat(&head, "%10s", kStages[i]);
    absl::StrAppendFormat(&values, "%10.1f", PerAnswer(report, load.stage_us[i]));
  }
  const double outside = load.latency.mean() * kMicro - PerAnswer(report, load.stage_us.back());
  absl::StrAppendFormat(&head, "%16s", "wire and client");
  absl::StrAppendFormat(&values, "%16.1f", outside);
  absl::StrAppend(&out, head, "\n", values, "\n");
  if (report.check.has_value()) {
    absl::StrAppend(&out, "\n", Line("check", CheckLine(*report.check)));
    for (const std::string& difference : report.check->differences) absl::StrAppend(&out, "  ", difference, "\n");
  }
  if (!load.first_error.ok())
    out += Line("first error", load.first_error.ToString(absl::StatusToStringMode::kWithNoExtraData));
  if (!load.broken.ok()) out += Line("stream ended", load.broken.ToString(absl::StatusToStringMode::kWithNoExtraData));
  return out;
}

std::string FormatJson(const BenchReport& report) {
  using nlohmann::ordered_json;
  const LoadResult& load = report.load;
  const auto answers = static_cast<double>(load.latency.count());
  const auto rows = answers * static_cast<double>(report.options.rows);
  ordered_json json;
  json["endpoint"] = report.endpoint;
  json["server"] = {{"version", report.server.version()},
                    {"device", report.server.device()},
                    {"numerics_id", report.server.numerics_id()}};
  json["layer"] = {{"name", LayerName(report.layer)},
                   {"fingerprint", report.layer.fingerprint()},
                   {"hidden_size", report.layer.hidden_size()},
                   {"num_experts", report.layer.num_experts()},
                   {"experts_per_token", report.layer.experts_per_token()},
                   {"intermediate_size", report.layer.intermediate_size()},
                   {"weight_dtype", report.layer.weight_dtype()}};
  json["load"] = {{"mode", ModeName(report.options.mode)},
                  {"connections", report.connections},
                  {"concurrency", report.options.concurrency},
                  {"rows_per_request", report.options.rows},
                  {"pre_routed", report.options.pre_routed},
                  {"seed", report.options.seed},
                  {"window_seconds", load.seconds}};
  json["requests"] = load.latency.count();
  json["requests_per_second"] = PerSecond(report, answers);
  json["rows_per_second"] = PerSecond(report, rows);
  ordered_json& latency = json["latency_us"] = {{"mean", load.latency.mean() * kMicro}};
  for (const auto& [name, fraction] : kPercentiles) latency[name] = PercentileMicros(report, fraction);
  for (const auto& [code, count] : load.statuses) json["statuses"][absl::StatusCodeToString(code)] = count;
  json["batch_rows_mean"] = PerAnswer(report, load.batch_rows);
  json["batch_requests_mean"] = PerAnswer(report, load.batch_requests);
  for (std::size_t i = 0; i < kStages.size(); ++i)
    json["stages_us_mean"][kStages[i]] = PerAnswer(report, load.stage_us[i]);
  if (report.check.has_value()) {
    json["check"] = {{"answers", report.check->answers},
                     {"rows", report.check->rows},
                     {"differing", report.check->differing},
                     {"differences", report.check->differences}};
  }
  if (!load.first_error.ok()) json["first_error"] = std::string(load.first_error.message());
  if (!load.broken.ok()) json["stream_ended"] = std::string(load.broken.message());
  json["passed"] = report.Passed();
  return json.dump(2) + "\n";
}

}  // namespace expertd::client
