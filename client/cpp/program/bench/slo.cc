#include "client/cpp/program/bench/slo.h"

#include <cmath>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"

namespace expertd::client {
namespace {

constexpr double kKeptUp = 0.95;  // of what was offered; windows end before their last answers come

constexpr std::pair<absl::string_view, double> kUnits[] = {{"us", 1e3}, {"ms", 1e6}, {"s", 1e9}};

bool ParseDuration(absl::string_view text, Nanos& out) {
  for (const auto& [unit, nanos] : kUnits) {
    absl::string_view number = text;
    double value = 0;
    if (absl::ConsumeSuffix(&number, unit) && absl::SimpleAtod(number, &value) && value > 0 && value <= 1e6) {
      out = std::llround(value * nanos);
      return true;
    }
  }
  return false;
}

bool ParsePercent(absl::string_view text, double low, double high, double& out) {
  double value = 0;
  if (!absl::SimpleAtod(text, &value) || !(value >= low && value <= high)) return false;
  out = value / 100;
  return true;
}

}  // namespace

absl::StatusOr<Slo> ParseSlo(absl::string_view text) {
  const auto wrong = [text](absl::string_view part) {
    return absl::InvalidArgumentError(
        absl::StrCat("slo: ", text, ": \"", part, "\" is neither pNN=LIMIT (us, ms or s) nor errors=NN%"));
  };
  Slo slo{.text = std::string(text)};
  for (const absl::string_view part : absl::StrSplit(text, ',')) {
    absl::string_view rest = part;
    if (absl::ConsumePrefix(&rest, "errors=")) {
      if (!absl::ConsumeSuffix(&rest, "%") || !ParsePercent(rest, 0, 100, slo.failed_share)) return wrong(part);
      continue;
    }
    const std::vector<absl::string_view> sides = absl::StrSplit(rest, absl::MaxSplits('=', 1));
    absl::string_view percentile = sides[0];
    if (sides.size() != 2 || !absl::ConsumePrefix(&percentile, "p") ||
        !ParsePercent(percentile, 1e-3, 100, slo.percentile) || !ParseDuration(sides[1], slo.limit)) {
      return wrong(part);
    }
  }
  if (slo.limit == 0) return absl::InvalidArgumentError(absl::StrCat("slo: ", text, ": no pNN=LIMIT in it"));
  return slo;
}

std::optional<std::string> Violation(const std::optional<Slo>& slo, const Window& measured, double offered) {
  if (measured.latency.count() == 0) return "nothing was answered";
  const double failed = measured.FailedShare(), allowed = slo.value_or(Slo{}).failed_share;
  if (failed > allowed) return absl::StrFormat("%.2f %% failed, more than %.2f %%", failed * 100, allowed * 100);
  if (slo.has_value()) {
    const Nanos at = measured.latency.Percentile(slo->percentile);
    if (at > slo->limit) {
      return absl::StrFormat("p%g is %.3f ms, more than %.3f ms", slo->percentile * 100, static_cast<double>(at) * 1e-6,
                             static_cast<double>(slo->limit) * 1e-6);
    }
  }
  const double done = measured.CompletedPerSecond();
  if (done < kKeptUp * offered) return absl::StrFormat("%.1f answered of %.1f offered a second", done, offered);
  return std::nullopt;
}

}  // namespace expertd::client
