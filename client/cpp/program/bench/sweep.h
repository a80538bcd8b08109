// Looking for the knee: which load to try next, and which of those tried was the best. Pure.
#pragma once

#include <optional>
#include <vector>

namespace expertd::client {

struct Probe {
  double load = 0;        // operations a second, or in progress
  bool holds = false;     // see Violation
  double throughput = 0;  // operations answered a second
  double latency = 0;     // median, any unit
};

struct SweepPlan {
  double from = 1, to = 1;  // 0 < from <= to
  int refinements = 4;      // loads tried between the last that holds and the first that does not
  bool whole = false;       // loads are whole numbers
  bool has_slo = false;     // without: a load that gains less than 5 % throughput is not worth its latency
};

// Doubles from `from` until a load does not hold (or gains nothing), then halves the gap between the two on a
// logarithmic scale. When already `from` does not hold, it goes down by halves. Absent: finished.
std::optional<double> NextLoad(const SweepPlan& plan, const std::vector<Probe>& probes);

// Index of the knee. With an objective: the highest load that holds. Without: of those that hold the one with the most
// power, throughput / latency (Kleinrock, "Power and deterministic rules of thumb for probabilistic problems in
// computer communications", 1979). Absent: none holds.
std::optional<std::size_t> Knee(const SweepPlan& plan, const std::vector<Probe>& probes);

}  // namespace expertd::client
