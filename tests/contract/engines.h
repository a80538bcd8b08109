// The engines that this build can make on this machine. The whole suite runs against each of them.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/engine.h"
#include "kernels/engine_factory.h"

namespace expertd::contract {

struct EngineCase {
  std::string name;  // as in a test's name
  std::function<absl::StatusOr<std::unique_ptr<Engine>>(const EngineOptions&)> make;
};

// What this processor cannot run is named on standard error and left out.
const std::vector<EngineCase>& Engines();
// And the double reference as an engine, first: a test that it fails is wrong. It is slow, so the long suites do
// without.
std::vector<EngineCase> ReferenceAndEngines();

}  // namespace expertd::contract
