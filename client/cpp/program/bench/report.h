// What a bench run found, and how it is told: as a table for people, and as JSON, CSV, a percentile file and a page.
#pragma once

#include <array>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "client/cpp/program/bench/check.h"
#include "client/cpp/program/bench/load.h"
#include "client/cpp/program/bench/server_metrics.h"
#include "client/cpp/program/bench/slo.h"
#include "client/cpp/program/bench/statistics.h"

namespace expertd::client {

// One load and what came of it.
struct Point {
  double load = 0;  // open loop: operations a second; closed: in progress
  LoadResult result;
  std::optional<ServerPeriod> server;    // with a metrics endpoint
  std::optional<std::string> violation;  // see Violation; only when loads are compared
};

struct BenchReport {
  std::string endpoint;
  std::string date;  // UTC, ISO 8601
  v1::GetServerInfoResponse server;
  std::vector<v1::Layer> layers;  // of an operation, in order
  int connections = 1;
  std::string routing = "server";  // as the flag says
  LoadOptions options;             // but for the load itself, which is each point's
  std::vector<Point> points;       // in the order in which they were measured; at least one
  bool swept = false;
  std::optional<Slo> slo;
  std::optional<std::size_t> knee;  // of points
  std::optional<CheckResult> check;

  // The knee when there is one, otherwise the last point.
  const Point& headline() const { return knee.has_value() ? points[*knee] : points.back(); }
  // Every operation of the headline was answered or refused as overload, at least one was answered, no stream broke, no
  // check found a difference, and a sweep found a knee.
  bool Passed() const;
};

inline constexpr std::array<std::pair<const char*, double>, 5> kPercentiles = {
    {{"p50", 0.5}, {"p90", 0.9}, {"p99", 0.99}, {"p99.9", 0.999}, {"max", 1.0}}};

// The numbers of a point that every form of the report shows.
struct Summary {
  std::array<double, kPercentiles.size()> latency_us{}, service_us{};
  double latency_mean_us = 0, service_mean_us = 0;
  Estimate p99_us, per_second, rows_per_second;  // over windows; the mean of one is its value
  double failed_share = 0;
  std::array<double, kStages.size()> stage_us{};  // means over answers
  double wire_us = 0;  // mean time of a request outside the server's stages: transport, and this program
  double batch_rows = 0, batch_requests = 0;
};

Summary Summarise(const Point& point);
// SaturationSigns of a point.
std::vector<std::string> Remarks(const Point& point);
// "12.3" or, with a confidence, "12.3 +- 0.4".
std::string EstimateText(const Estimate& estimate);
// "Poisson arrivals at 100 /s" or "8 in progress".
std::string LoadText(const BenchReport& report, const Point& point);
// "stream", "unary".
const char* ModeName(Mode mode);
const char* ArrivalName(ArrivalKind kind);

std::string FormatTable(const BenchReport& report);
std::string FormatJson(const BenchReport& report);
// One line for each point and one for each of its windows; the first line names the columns.
std::string FormatCsv(const BenchReport& report);
// Percentiles of the headline's latency in the text format of HdrHistogram's plotter, in microseconds.
std::string FormatHistogram(const BenchReport& report);
// One page without external files.
std::string FormatHtml(const BenchReport& report);

}  // namespace expertd::client
