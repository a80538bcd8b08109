// What a bench run found, as a table for people and as JSON.
#pragma once

#include <optional>
#include <string>

#include "client/cpp/program/check.h"
#include "client/cpp/program/load.h"

namespace expertd::client {

struct BenchReport {
  std::string endpoint;
  v1::GetServerInfoResponse server;
  v1::Layer layer;
  int connections = 1;
  LoadOptions options;
  LoadResult load;
  std::optional<CheckResult> check;

  // Every request was answered or refused as overload, at least one was answered, and no check found a difference.
  bool Passed() const;
};

std::string FormatTable(const BenchReport& report);
std::string FormatJson(const BenchReport& report);

}  // namespace expertd::client
