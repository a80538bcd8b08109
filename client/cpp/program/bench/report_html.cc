#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "client/cpp/program/bench/chart.h"
#include "client/cpp/program/bench/page_style.h"
#include "client/cpp/program/bench/report.h"
#include "client/cpp/program/layers.h"

namespace expertd::client {
namespace {

std::string Card(absl::string_view title, absl::string_view body, bool wide = false) {
  return absl::StrCat("<section class=\"card", wide ? " wide" : "", "\"><h2>", Escape(title), "</h2>", body,
                      "</section>\n");
}

std::string Tile(absl::string_view value, absl::string_view what) {
  return absl::StrCat("<div class=\"tile\"><b>", Escape(value), "</b><span>", Escape(what), "</span></div>");
}

std::string Interval(const Estimate& estimate) {
  return std::isnan(estimate.half_width) ? "" : absl::StrCat(" \u00b1 ", ShortNumber(estimate.half_width));
}

std::string ShortLoad(const BenchReport& report, const Point& point) {
  if (point.load == 0) return "as recorded";
  return absl::StrCat(ShortNumber(point.load), report.options.open_loop() ? " /s" : " in flight");
}

std::string Tiles(const BenchReport& report) {
  const Point& point = report.headline();
  const Summary s = Summarise(point);
  std::string out = "<div class=\"tiles\">";
  if (report.swept) {
    out += Tile(report.knee.has_value() ? ShortLoad(report, point) : "none",
                report.slo.has_value() ? "knee: most load that holds " + report.slo->text
                                       : "knee: most throughput for its latency");
  }
  out += Tile(ShortNumber(s.per_second.mean) + " /s",
              absl::StrCat(report.layers.size() > 1 ? "steps" : "requests", " answered", Interval(s.per_second)));
  out += Tile(ShortNumber(s.rows_per_second.mean) + " /s", absl::StrCat("rows answered", Interval(s.rows_per_second)));
  out += Tile(DurationText(s.latency_us[0]), "p50 latency");
  out += Tile(DurationText(s.latency_us[2]),
              absl::StrCat("p99 latency",
                           std::isnan(s.p99_us.half_width) ? "" : " \u00b1 " + DurationText(s.p99_us.half_width)));
  out += Tile(absl::StrFormat("%.3g %%", s.failed_share * 100), "failed or refused");
  return out + "</div>\n";
}

std::vector<const Point*> ByLoad(const BenchReport& report) {
  std::vector<const Point*> points;
  for (const Point& point : report.points) points.push_back(&point);
  std::sort(points.begin(), points.end(), [](const Point* a, const Point* b) { return a->load < b->load; });
  return points;
}

std::string LatencyAgainstThroughput(const BenchReport& report) {
  LineChart chart{.x = {.title = "answered a second"},
                  .y = {.title = "latency", .logarithmic = true, .micros = true},
                  .width = kWhole};
  for (std::size_t i = 0; i + 1 < kPercentiles.size(); ++i) {
    Line& line = chart.lines.emplace_back(Line{.name = kPercentiles[i].first});
    for (const Point* point : ByLoad(report)) {
      const Summary s = Summarise(*point);
      line.points.emplace_back(s.per_second.mean, s.latency_us[i]);
      line.tips.push_back(absl::StrCat(LoadText(report, *point), ": ", ShortNumber(s.per_second.mean), " /s, ",
                                       line.name, " ", DurationText(s.latency_us[i])));
    }
  }
  if (report.slo.has_value()) chart.horizontal = {static_cast<double>(report.slo->limit) / 1000, report.slo->text};
  if (report.knee.has_value()) chart.vertical = {Summarise(report.headline()).per_second.mean, "knee"};
  return Card("Latency against throughput", RenderLines(chart), true);
}

std::string Offered(const BenchReport& report) {
  LineChart chart{.x = {.title = "offered a second"}, .y = {.title = "answered a second"}};
  Line answered{.name = "answered"}, offered{.name = "offered", .dashed = true};
  for (const Point* point : ByLoad(report)) {
    answered.points.emplace_back(point->load, Summarise(*point).per_second.mean);
    offered.points.emplace_back(point->load, point->load);
  }
  chart.lines = {answered, offered};
  return Card("What was offered, what was answered", RenderLines(chart));
}

// The curve of 1 / (1 - percentile): each step to the right is a tenth as many operations.
Line PercentileLine(const std::string& name, const Histogram& histogram) {
  Line line{.name = name};
  std::int64_t seen = 0;
  histogram.ForEachBucket([&](std::int64_t most, std::int64_t samples) {
    const double above = 1 - static_cast<double>(seen) / static_cast<double>(histogram.count());
    line.points.emplace_back(-std::log10(above), static_cast<double>(most) / 1000);
    seen += samples;
  });
  return line;
}

std::string Percentiles(const BenchReport& report) {
  const Window& total = report.headline().result.total;
  LineChart chart{.x = {.title = "share of operations that are at most as slow"},
                  .y = {.title = "latency", .logarithmic = true, .micros = true},
                  .marks = false};
  chart.x.ticks = {{0, "0"}, {std::log10(2.0), "50 %"}};
  for (double nines = 1; std::pow(10, nines) <= static_cast<double>(total.latency.count()); ++nines) {
    chart.x.ticks.push_back(
        {nines, absl::StrFormat("%.*f %%", std::max(0, static_cast<int>(nines) - 2), 100 - std::pow(10, 2 - nines))});
  }
  chart.lines.push_back(
      PercentileLine(report.options.open_loop() ? "latency, from schedule" : "latency", total.latency));
  if (report.options.open_loop()) chart.lines.push_back(PercentileLine("service time, from sending", total.service));
  return Card("Percentiles", RenderLines(chart));
}

std::string Stages(const BenchReport& report) {
  const bool many = report.points.size() > 3;
  StackChart chart{.parts = {kStages.begin(), kStages.end() - 1}, .width = many ? kWhole : kHalf};
  chart.parts.push_back("wire and client");
  for (const Point* point : ByLoad(report)) {
    const Summary s = Summarise(*point);
    std::vector<double> values(s.stage_us.begin(), s.stage_us.end() - 1);
    values.push_back(std::max(0.0, s.wire_us));
    chart.bars.emplace_back(ShortLoad(report, *point), values);
  }
  if (const auto& server = report.headline().server; server.has_value()) {
    chart.parts.push_back("write");
    std::vector<double> values;
    for (const std::string& part : chart.parts) {
      const auto stage = std::find_if(server->stages.begin(), server->stages.end(),
                                      [&](const ServerPeriod::Stage& s) { return s.name == part; });
      values.push_back(stage == server->stages.end() ? 0 : stage->mean_us);
    }
    chart.bars.emplace_back("server metrics", values);
    for (auto& bar : chart.bars) bar.second.resize(chart.parts.size());
  }
  return Card("Where a request's time went (means)", RenderStacks(chart), many);
}

std::string BatchSizes(const BenchReport& report) {
  // Powers of two: 1, 2, 3-4, 5-8, ...
  const Counts& counts = report.headline().result.counts;
  std::map<int, double> bins;
  for (const auto& [rows, count] : counts.batch_rows) {
    bins[static_cast<int>(std::ceil(std::log2(std::max(1.0, static_cast<double>(rows)))))] +=
        static_cast<double>(count);
  }
  BarChart chart{.x_title = "rows of the batch", .y_title = "% of answers"};
  for (int bin = bins.empty() ? 0 : bins.begin()->first; !bins.empty() && bin <= bins.rbegin()->first; ++bin) {
    const std::int64_t low = bin == 0 ? 1 : (std::int64_t{1} << (bin - 1)) + 1, high = std::int64_t{1} << bin;
    chart.bars.emplace_back(low == high ? absl::StrCat(low) : absl::StrCat(low, "-", high),
                            bins[bin] * 100 / static_cast<double>(counts.answers));
  }
  return Card("Batches that answers came from", RenderBars(chart));
}

std::string ServerBatches(const ServerPeriod& server) {
  BarChart chart{.x_title = "rows, at most", .y_title = "batches"};
  for (const Bucket& bucket : server.batches_by_rows) {
    chart.bars.emplace_back(std::isinf(bucket.most) ? "more" : ShortNumber(bucket.most), bucket.count);
  }
  const auto empty = [](const auto& bar) { return bar.second == 0; };
  while (!chart.bars.empty() && empty(chart.bars.back())) chart.bars.pop_back();
  chart.bars.erase(chart.bars.begin(), std::find_if_not(chart.bars.begin(), chart.bars.end(), empty));
  return Card("The server's batches, from its metrics", RenderBars(chart));
}

std::string Layers(const BenchReport& report) {
  LineChart chart{.x = {.title = "layer of the step"}, .y = {.title = "latency of a request", .micros = true}};
  chart.lines = {{.name = "p50"}, {.name = "p99"}};
  const std::size_t every = (report.layers.size() + 9) / 10;  // layer that gets a tick
  for (std::size_t i = 0; i < report.layers.size(); ++i) {
    if (i % every == 0) chart.x.ticks.push_back({static_cast<double>(i), absl::StrCat(report.layers[i].layer())});
    const Histogram& calls = report.headline().result.counts.calls[i];
    for (const auto& [line, fraction] : {std::pair(0, 0.5), std::pair(1, 0.99)}) {
      const double us = static_cast<double>(calls.Percentile(fraction)) / 1000;
      Line& into = chart.lines[static_cast<std::size_t>(line)];
      into.points.emplace_back(static_cast<double>(i), us);
      into.tips.push_back(absl::StrCat(LayerName(report.layers[i]), ": ", into.name, " ", DurationText(us)));
    }
  }
  return Card("Layers of a decode step", RenderLines(chart));
}

std::string Windows(const BenchReport& report) {
  LineChart chart{.x = {.title = "window"}, .y = {.title = "latency", .logarithmic = true, .micros = true}};
  const auto& windows = report.headline().result.windows;
  for (const auto& [name, fraction] : {kPercentiles[0], kPercentiles[2]}) {
    Line& line = chart.lines.emplace_back(Line{.name = name});
    for (std::size_t i = 0; i < windows.size(); ++i) {
      line.points.emplace_back(static_cast<double>(i + 1),
                               static_cast<double>(windows[i].latency.Percentile(fraction)) / 1000);
    }
  }
  for (std::size_t i = 0; i < windows.size(); ++i) {
    if (windows.size() <= 12) chart.x.ticks.push_back({static_cast<double>(i + 1), absl::StrCat(i + 1)});
  }
  return Card("Windows", RenderLines(chart));
}

std::string PointTable(const BenchReport& report) {
  std::string out = "<div class=\"scroll\"><table><tr><th>load</th><th>answered /s</th><th>rows /s</th>";
  for (const auto& [name, fraction] : kPercentiles) absl::StrAppend(&out, "<th>", name, "</th>");
  out += "<th>service p99</th><th>failed</th><th>batch rows</th><th></th></tr>";
  for (const Point* point : ByLoad(report)) {
    const Summary s = Summarise(*point);
    const bool knee = report.knee.has_value() && point == &report.headline();
    absl::StrAppend(&out, knee ? "<tr class=\"knee\">" : "<tr>", "<td>", Escape(LoadText(report, *point)), "</td><td>",
                    ShortNumber(s.per_second.mean), "</td><td>", ShortNumber(s.rows_per_second.mean), "</td>");
    for (const double us : s.latency_us) absl::StrAppend(&out, "<td>", DurationText(us), "</td>");
    absl::StrAppendFormat(&out, "<td>%s</td><td>%.3g %%</td><td>%.1f</td><td class=\"left\">%s</td></tr>",
                          DurationText(s.service_us[2]), s.failed_share * 100, s.batch_rows,
                          knee ? "knee" : Escape(point->violation.value_or("")));
  }
  return Card("All loads", out + "</table></div>", true);
}

std::string Facts(const BenchReport& report) {
  const LoadOptions& options = report.options;
  const Point& point = report.headline();
  std::string statuses;
  for (const auto& [code, count] : point.result.total.statuses)
    absl::StrAppend(&statuses, absl::StatusCodeToString(code), " ", count, "  ");
  std::vector<std::pair<std::string, std::string>> facts = {
      {"server", absl::StrCat(report.endpoint, ", expertd ", report.server.version(), ", ", report.server.device())},
      {"layer", absl::StrCat(LayerName(report.layers.front()), ": ", LayerSizes(report.layers.front()))},
      {"operation", report.layers.size() > 1 ? absl::StrCat("a decode step through ", report.layers.size(), " layers")
                                             : "one request"},
      {"load",
       absl::StrCat(LoadText(report, point), ", ", ModeName(options.mode), ", ", report.connections, " connections")},
      {"rows", absl::StrCat(options.rows.text(), ", routing ", report.routing)},
      {"windows", absl::StrFormat("%d of %.1f s", point.result.windows.size(), point.result.windows.front().seconds)},
      {"statuses", statuses}};
  if (point.server.has_value() && !point.server->refused.empty()) {
    std::string refused;
    for (const auto& [reason, count] : point.server->refused)
      absl::StrAppendFormat(&refused, "%s %.0f  ", reason, count);
    facts.emplace_back("refused by the server", refused);
  }
  if (report.check.has_value()) {
    facts.emplace_back("bit check", absl::StrCat(report.check->answers, " answers sent again alone, ",
                                                 report.check->differing, " differ"));
  }
  std::string out = "<dl>";
  for (const auto& [name, value] : facts) absl::StrAppend(&out, "<dt>", name, "</dt><dd>", Escape(value), "</dd>");
  return Card("This run", out + "</dl>", true);
}

std::string Notes(const BenchReport& report) {
  std::vector<std::string> notes = Remarks(report.headline());
  const LoadResult& result = report.headline().result;
  if (!report.options.open_loop()) {
    notes.push_back(
        "A closed loop sends nothing while it waits: what callers of a stalled server would suffer does not show. "
        "Use --rate for latency that counts from a schedule.");
  }
  if (!result.counts.first_error.ok())
    notes.push_back(absl::StrCat("first error: ", result.counts.first_error.message()));
  if (!result.broken.ok()) notes.push_back(absl::StrCat("a stream ended: ", result.broken.message()));
  if (notes.empty()) return "";
  std::string out = "<div class=\"note\">";
  for (const std::string& note : notes) absl::StrAppend(&out, "<p>", Escape(note), "</p>");
  return out + "</div>\n";
}

}  // namespace

std::string FormatHtml(const BenchReport& report) {
  std::string cards;
  if (report.swept) cards += LatencyAgainstThroughput(report);
  cards += Percentiles(report) + Stages(report) + BatchSizes(report);
  if (report.headline().server.has_value()) cards += ServerBatches(*report.headline().server);
  if (report.layers.size() > 1) cards += Layers(report);
  if (report.swept && report.options.open_loop()) cards += Offered(report);
  if (report.headline().result.windows.size() > 1) cards += Windows(report);
  cards += Facts(report);
  cards += PointTable(report);
  // In a script element only "<" can end the element early.
  const std::string json = absl::StrReplaceAll(FormatJson(report), {{"<", "\\u003c"}});
  const std::string title = absl::StrCat("expertd bench: ", LayerName(report.layers.front()));
  return absl::StrCat(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">",
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><meta name=\"color-scheme\" ",
      "content=\"light dark\"><title>", Escape(title), "</title><style>", kPageStyle, "</style></head><body><main><h1>",
      Escape(title), "</h1><p class=\"sub\">",
      Escape(absl::StrCat(report.date, " \u00b7 ", report.endpoint, " \u00b7 ", report.server.device())), "</p>\n",
      Notes(report), Tiles(report), "<div class=\"cards\">\n", cards,
      "</div></main><div id=\"tip\"></div>\n<script type=\"application/json\" id=\"report\">", json,
      "</script><script>", kPageScript, "</script></body></html>\n");
}

}  // namespace expertd::client
