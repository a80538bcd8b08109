#include "client/cpp/program/bench/sweep.h"

#include <algorithm>
#include <cmath>

namespace expertd::client {
namespace {

constexpr double kWorthwhileGain = 1.05;  // of throughput, by doubling the load

struct Bracket {
  double holds = 0;  // highest load that does; 0: none
  double fails = 0;  // lowest load that does not; 0: none
  int inside = 0;    // loads tried after both were known
};

Bracket BracketOf(const std::vector<Probe>& probes) {
  Bracket bracket;
  for (const Probe& probe : probes) {
    if (bracket.holds > 0 && bracket.fails > 0) ++bracket.inside;
    if (probe.holds) {
      bracket.holds = std::max(bracket.holds, probe.load);
    } else if (bracket.fails == 0 || probe.load < bracket.fails) {
      bracket.fails = probe.load;
    }
  }
  return bracket;
}

bool StoppedGaining(const std::vector<Probe>& probes) {
  if (probes.size() < 2) return false;
  const Probe &last = probes.back(), &before = probes[probes.size() - 2];
  return last.load > before.load && last.throughput < kWorthwhileGain * before.throughput;
}

}  // namespace

std::optional<double> NextLoad(const SweepPlan& plan, const std::vector<Probe>& probes) {
  if (probes.empty()) return plan.from;
  const Bracket bracket = BracketOf(probes);
  double next = 0;
  if (bracket.fails == 0) {
    if (bracket.holds >= plan.to || (!plan.has_slo && StoppedGaining(probes))) return std::nullopt;
    next = std::min(plan.to, bracket.holds * 2);
  } else if (bracket.holds == 0) {
    if (static_cast<int>(probes.size()) > plan.refinements) return std::nullopt;
    next = bracket.fails / 2;
  } else {
    if (bracket.inside >= plan.refinements) return std::nullopt;
    next = std::sqrt(bracket.holds * bracket.fails);
  }
  if (!plan.whole) return next;
  next = std::floor(next);
  const bool tried = std::any_of(probes.begin(), probes.end(), [&](const Probe& probe) { return probe.load == next; });
  if (tried && bracket.holds > 0 && next + 1 < bracket.fails) return next + 1;
  return tried || next < 1 ? std::nullopt : std::optional(next);
}

std::optional<std::size_t> Knee(const SweepPlan& plan, const std::vector<Probe>& probes) {
  const auto merit = [&](const Probe& probe) { return plan.has_slo ? probe.load : probe.throughput / probe.latency; };
  std::optional<std::size_t> best;
  for (std::size_t i = 0; i < probes.size(); ++i) {
    if (probes[i].holds && (!best.has_value() || merit(probes[i]) > merit(probes[*best]))) best = i;
  }
  return best;
}

}  // namespace expertd::client
