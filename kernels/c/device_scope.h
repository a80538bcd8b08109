// The calling thread's current CUDA device, changed for a scope: whoever calls the C ABI has one of its own.
#pragma once

#include <utility>

#include "absl/status/statusor.h"

namespace expertd::c {

class DeviceScope {
 public:
  // Unavailable: no driver or no such device.
  static absl::StatusOr<DeviceScope> Enter(int device);
  DeviceScope(DeviceScope&& other) noexcept : before_(std::exchange(other.before_, kNothing)) {}
  DeviceScope& operator=(DeviceScope&&) = delete;
  ~DeviceScope();

 private:
  static constexpr int kNothing = -1;  // to go back to
  explicit DeviceScope(int before) : before_(before) {}
  int before_;
};

}  // namespace expertd::c
