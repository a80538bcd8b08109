#include "kernels/base/host_memory.h"

#include <cstdint>
#include <fstream>
#include <string>

namespace expertd {

DeviceMemory HostMemory() {
  DeviceMemory memory;
  std::ifstream meminfo("/proc/meminfo");
  std::string name, unit;
  for (std::int64_t kib = 0; meminfo >> name >> kib; std::getline(meminfo, unit)) {
    if (name == "MemTotal:") memory.total_bytes = kib << 10;
    if (name == "MemAvailable:") memory.free_bytes = kib << 10;
  }
  return memory;
}

}  // namespace expertd
