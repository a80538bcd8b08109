#include "server/process_metrics.h"

#include <dirent.h>
#include <prometheus/client_metric.h>
#include <prometheus/metric_family.h>
#include <prometheus/metric_type.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <fstream>
#include <memory>
#include <optional>

namespace expertd {
namespace {

struct Reading {
  const char* name;
  const char* help;
  prometheus::MetricType type;
  std::optional<double> value;
};

double SecondsOf(const timeval& time) {
  return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

std::optional<double> CpuSeconds() {
  rusage usage;
  if (getrusage(RUSAGE_SELF, &usage) != 0) return std::nullopt;
  return SecondsOf(usage.ru_utime) + SecondsOf(usage.ru_stime);
}

std::optional<double> ResidentBytes() {
  std::ifstream statm("/proc/self/statm");
  std::int64_t total_pages = 0, resident_pages = 0;
  if (!(statm >> total_pages >> resident_pages)) return std::nullopt;
  return static_cast<double>(resident_pages) * static_cast<double>(sysconf(_SC_PAGESIZE));
}

std::optional<double> OpenFiles() {
  const std::unique_ptr<DIR, int (*)(DIR*)> folder(opendir("/proc/self/fd"), closedir);
  if (folder == nullptr) return std::nullopt;
  int entries = 0;
  while (readdir(folder.get()) != nullptr) ++entries;
  return entries - 3;  // ".", ".." and the folder itself
}

std::optional<double> MaxFiles() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return std::nullopt;
  return static_cast<double>(limit.rlim_cur);
}

}  // namespace

ProcessMetrics::ProcessMetrics()
    : start_seconds_(std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count()) {}

std::vector<prometheus::MetricFamily> ProcessMetrics::Collect() const {
  constexpr auto kGauge = prometheus::MetricType::Gauge, kCounter = prometheus::MetricType::Counter;
  const Reading readings[] = {
      {"process_start_time_seconds", "Start of the process, seconds since 1970.", kGauge, start_seconds_},
      {"process_cpu_seconds_total", "User and system time of all threads.", kCounter, CpuSeconds()},
      {"process_resident_memory_bytes", "Resident memory.", kGauge, ResidentBytes()},
      {"process_open_fds", "Open files and sockets.", kGauge, OpenFiles()},
      {"process_max_fds", "Files and sockets that may be open.", kGauge, MaxFiles()},
  };
  std::vector<prometheus::MetricFamily> families;
  for (const Reading& reading : readings) {
    if (!reading.value) continue;
    prometheus::ClientMetric metric;
    metric.gauge.value = metric.counter.value = *reading.value;  // only the one of `type` is written
    families.push_back({.name = reading.name, .help = reading.help, .type = reading.type, .metric = {metric}});
  }
  return families;
}

}  // namespace expertd
