#include "client/cpp/program/bench/campaign.h"

#include <cmath>

#include "absl/strings/str_format.h"

namespace expertd::client {
namespace {

constexpr std::chrono::seconds kScrapeTimeout{5};

absl::StatusOr<Scrape> ScrapeServer(const HttpUrl& url) {
  const auto text = HttpGet(url, kScrapeTimeout);
  if (!text.ok()) return text.status();
  return ParseMetrics(*text);
}

absl::StatusOr<Point> Measure(const Client& client, const Payloads& payloads, std::size_t layers,
                              const LoadOptions& load, const std::optional<HttpUrl>& metrics,
                              const ShowProgress& show) {
  Point point{.load = load.open_loop() ? load.rate : load.concurrency};
  Scrape before;
  if (metrics.has_value()) {
    auto scrape = ScrapeServer(*metrics);
    if (!scrape.ok()) return scrape.status();
    before = *std::move(scrape);
  }
  point.result = RunLoad(client, payloads, layers, load, show);
  if (metrics.has_value()) {
    const auto after = ScrapeServer(*metrics);
    if (!after.ok()) return after.status();
    point.server = Difference(before, *after);
  }
  return point;
}

Probe ProbeOf(const Point& point) {
  const Window& total = point.result.total;
  return {.load = point.load,
          .holds = !point.violation.has_value(),
          .throughput = total.CompletedPerSecond(),
          .latency = static_cast<double>(total.latency.Percentile(0.5))};
}

}  // namespace

absl::Status RunCampaign(const Client& client, const Campaign& campaign, const ShowProgress& show,
                         BenchReport& report) {
  if (const absl::Status status = CheckLoad(client.info(), campaign.load); !status.ok()) return status;
  const Payloads payloads(report.layers, campaign.load.rows.most(), campaign.skew, campaign.load.seed);
  const bool open = campaign.load.open_loop();
  LoadOptions load = campaign.load;
  std::vector<Probe> probes;
  auto next = campaign.sweep.has_value() ? NextLoad(*campaign.sweep, probes)
                                         : std::optional<double>(open ? load.rate : load.concurrency);
  while (next.has_value()) {
    if (open) {
      load.rate = *next;
    } else {
      load.concurrency = static_cast<int>(*next);
    }
    const std::string prefix = campaign.sweep.has_value() ? absl::StrFormat("%.4g%s: ", *next, open ? " /s" : "") : "";
    auto point = Measure(client, payloads, report.layers.size(), load, campaign.metrics,
                         [&](double fraction, const std::string& text) { show(fraction, prefix + text); });
    if (!point.ok()) return point.status();
    if (campaign.sweep.has_value()) {
      point->violation = Violation(campaign.slo, point->result.total, open ? *next : 0);
    }
    probes.push_back(ProbeOf(*point));
    const bool broken = !point->result.broken.ok();
    report.points.push_back(*std::move(point));
    next = campaign.sweep.has_value() && !broken ? NextLoad(*campaign.sweep, probes) : std::nullopt;
  }
  if (campaign.sweep.has_value()) report.knee = Knee(*campaign.sweep, probes);
  return absl::OkStatus();
}

}  // namespace expertd::client
