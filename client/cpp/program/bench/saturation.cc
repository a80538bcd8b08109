#include "client/cpp/program/bench/saturation.h"

#include <sched.h>
#include <sys/resource.h>

#include "absl/strings/str_format.h"

namespace expertd::client {
namespace {

constexpr double kBusyShare = 0.85;       // of the processors
constexpr double kLagShare = 0.1;         // of the median latency
constexpr double kNoticeableLagUs = 100;  // below it, timers of the operating system are to blame

double Seconds(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

}  // namespace

std::vector<std::string> SaturationSigns(const OwnUse& own, const SendingFacts& sending) {
  std::vector<std::string> signs;
  if (own.cpu_seconds > kBusyShare * own.wall_seconds * own.cores) {
    signs.push_back(absl::StrFormat(
        "the load tester is saturated: it used %.1f of its %d processors; run it on another machine, or several of it",
        own.cpu_seconds / own.wall_seconds, own.cores));
  }
  if (sending.lag_p99_us > kNoticeableLagUs && sending.lag_p99_us > kLagShare * sending.latency_p50_us) {
    signs.push_back(absl::StrFormat(
        "the load tester was late: 1 %% of the operations were sent more than %.0f us after their time, of a median "
        "latency of %.0f us (counted in the latency, not in the service time)",
        sending.lag_p99_us, sending.latency_p50_us));
  }
  if (sending.held_back > 0) {
    signs.push_back(absl::StrFormat(
        "%d of %d operations waited in the load tester because %d were unanswered (counted in the latency); raise "
        "--max-in-flight or --connections if the server takes more",
        sending.held_back, sending.operations, own.max_in_flight));
  }
  return signs;
}

double CpuSecondsSoFar() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return Seconds(usage.ru_utime) + Seconds(usage.ru_stime);
}

int UsableCores() {
  cpu_set_t cores;
  CPU_ZERO(&cores);
  return sched_getaffinity(0, sizeof(cores), &cores) == 0 ? CPU_COUNT(&cores) : 1;
}

}  // namespace expertd::client
