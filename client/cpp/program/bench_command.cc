#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <memory>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/cpp/program/bench_flags.h"
#include "client/cpp/program/commands.h"
#include "client/cpp/program/progress.h"

namespace expertd::client {
namespace {

absl::StatusOr<std::vector<v1::Layer>> LayersOf(const Client& client, const BenchFlags& flags) {
  if (!flags.layers.empty()) return ChooseLayers(client, flags.layer.model, flags.layers);
  auto layer = ChooseLayer(client, flags.layer);
  if (!layer.ok()) return layer.status();
  return std::vector<v1::Layer>{*std::move(layer)};
}

// What the report's files hold, and where they go; an empty path is none.
absl::Status WriteFiles(const BenchFlags& flags, const BenchReport& report) {
  const struct {
    const char* flag;
    const std::string& path;
    std::string (*format)(const BenchReport&);
  } files[] = {{"--json", flags.json, FormatJson},
               {"--csv", flags.csv, FormatCsv},
               {"--histogram", flags.histogram, FormatHistogram},
               {"--html", flags.html, FormatHtml}};
  for (const auto& [flag, path, format] : files) {
    if (path.empty()) continue;
    std::ofstream file(path);
    file << format(report);
    if (!file.flush()) return absl::InvalidArgumentError(std::string(flag) + ": cannot write " + path);
  }
  return absl::OkStatus();
}

int Bench(const BenchFlags& flags) {
  const auto campaign = MakeCampaign(flags);
  if (!campaign.ok()) return Complain(campaign.status(), kExitUsage);
  const auto client = Client::Connect(flags.client);
  if (!client.ok()) return Complain(client.status(), kExitUnreachable);
  auto layers = LayersOf(**client, flags);
  if (!layers.ok()) return Complain(layers.status(), kExitFailed);

  BenchReport report{.endpoint = flags.client.endpoint,
                     .date = absl::FormatTime("%Y-%m-%d %H:%M UTC", absl::Now(), absl::UTCTimeZone()),
                     .server = (*client)->info(),
                     .layers = *std::move(layers),
                     .connections = flags.client.connections,
                     .routing = flags.pre_routed ? "uniform" : flags.routing,
                     .options = campaign->load,
                     .swept = campaign->sweep.has_value(),
                     .slo = campaign->slo};
  {
    Progress progress;
    const ShowProgress show = [&](double fraction, const std::string& text) { progress.Show(fraction, text); };
    if (const absl::Status status = RunCampaign(**client, *campaign, show, report); !status.ok()) {
      return Complain(status, kExitUsage);
    }
    if (flags.check) {
      auto check = CheckSamples(**client, report.headline().result.samples, show);
      if (!check.ok()) return Complain(check.status(), kExitFailed);
      report.check = *std::move(check);
    }
  }
  std::fputs(FormatTable(report).c_str(), stdout);
  if (const absl::Status written = WriteFiles(flags, report); !written.ok()) return Complain(written, kExitUsage);
  return report.Passed() ? kExitOk : kExitFailed;
}

}  // namespace

void AddBenchCommand(CLI::App& app, int* exit_code) {
  auto flags = std::make_shared<BenchFlags>();
  CLI::App* bench =
      app.add_subcommand("bench", "Load-test layers: a closed loop, an open loop at a rate, or a sweep to the knee");
  AddBenchFlags(*bench, *flags);
  bench->callback([flags, exit_code] { *exit_code = Bench(*flags); });
}

}  // namespace expertd::client
