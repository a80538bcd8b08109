#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "kernels/engine_factory.h"
#include "server/commands/commands.h"
#include "server/layer_plan.h"
#include "server/lifecycle.h"
#include "server/log.h"
#include "server/null_engine.h"
#include "server/options.h"
#include "server/server.h"

namespace expertd {
namespace {

// What is left to callers between a loss and the end of the process.
constexpr std::chrono::seconds kLastWords{1};

// One line, whatever the message holds.
int Fail(const absl::Status& status, ExitCode code) {
  std::string message(status.message());
  for (char& c : message) {
    if (c == '\n') c = ' ';
  }
  FlushLog();
  std::fprintf(stderr, "expertd: %s\n", message.c_str());
  return code;
}

// Lines that scripts wait for.
void Say(const std::string& line) {
  std::printf("%s\n", line.c_str());
  std::fflush(stdout);
}

// Room on the device for rows that wait, and for those of the batches in flight, which keep theirs until they end.
// Never more than there is for the rows themselves.
std::int64_t StagingBytes(const ServerOptions& options, const std::vector<PlannedLayer>& plan) {
  constexpr std::int64_t kBatchesInFlight = 2;
  if (options.stage_batches_ahead == 0) return 0;
  const std::int64_t rows = (options.stage_batches_ahead + kBatchesInFlight) * options.max_batch_rows;
  return std::min(BytesOf(DType::kBF16, rows * LargestHiddenSize(options, plan)), options.buffer_mib << 20);
}

absl::StatusOr<std::unique_ptr<Engine>> MakeServerEngine(const ServerOptions& options,
                                                         const std::vector<PlannedLayer>& plan) {
  const std::int64_t buffer_bytes = options.buffer_mib << 20;
  if (options.device == "null") {
    return MakeNullEngine({.max_batch_rows = options.max_batch_rows,
                           .row_buffer_bytes = buffer_bytes,
                           .per_batch = std::chrono::microseconds(options.null_batch_us),
                           .per_row = std::chrono::nanoseconds(options.null_row_ns)});
  }
  const absl::StatusOr<ExpertPath> path = ParseExpertPath(options.path);
  if (!path.ok()) return path.status();
  return MakeEngine(options.device, {.threads = static_cast<int>(options.threads),
                                     .max_batch_rows = options.max_batch_rows,
                                     .row_buffer_bytes = buffer_bytes,
                                     .staging_bytes = StagingBytes(options, plan),
                                     .path = *path});
}

void LogConfiguration(const ServerOptions& options) {
  for (const auto& [name, value] : options.Effective()) {
    Log(LogLevel::kInfo, "option", {{"name", name}, {"value", value}});
  }
}

ExitCode ExitCodeOfStart(const absl::Status& status) {
  if (absl::IsUnavailable(status)) return kExitCannotBind;
  return absl::IsAlreadyExists(status) ? kExitModelInvalid : kExitUsage;
}

// The process ends without taking anything apart: engine threads may never come back.
[[noreturn]] void DieOfLoss(Server& server, const Loss& loss) {
  server.Drain(Clock::now() + kLastWords);
  _exit(Fail(loss.reason, loss.code));
}

int RunUntilStopped(Server& server, StopState& stop, const ServerOptions& options) {
  stop.WaitForStop();
  if (const auto lost = stop.WaitForLoss(Clock::now())) DieOfLoss(server, *lost);
  server.LeaveHealth();
  const auto grace_ends = Clock::now() + std::chrono::milliseconds(options.drain_grace_ms);
  if (const auto lost = stop.WaitForLoss(grace_ends)) DieOfLoss(server, *lost);
  const bool drained = server.Drain(Clock::now() + std::chrono::milliseconds(options.drain_timeout_ms));
  if (const auto lost = stop.WaitForLoss(Clock::now())) DieOfLoss(server, *lost);
  if (!drained) {
    const absl::Status late = absl::DeadlineExceededError(
        absl::StrCat("--drain-timeout-ms ", options.drain_timeout_ms, ": passed with requests unanswered"));
    _exit(Fail(late, kExitDrainTimedOut));
  }
  Log(LogLevel::kInfo, "drained");
  return kExitOk;
}

int Serve(const ServerOptions& options) {
  InitLog(options.log_level, options.log_format);
  static auto* const stop = new StopState;  // the signal thread has no end
  HandleStopSignals(*stop);
  RaiseFileLimit();

  absl::StatusOr<std::vector<PlannedLayer>> plan = PlanLayers(options);
  if (!plan.ok()) return Fail(plan.status(), kExitModelInvalid);
  absl::StatusOr<std::unique_ptr<Engine>> engine = MakeServerEngine(options, *plan);
  if (!engine.ok()) {
    return Fail(engine.status(), absl::IsInvalidArgument(engine.status()) ? kExitUsage : kExitDeviceInit);
  }
  Server::Hooks hooks = {.on_engine_lost = [](const absl::Status& reason) { stop->Lose(reason, kExitEngineLost); },
                         .on_listener_lost = [](const absl::Status& reason) { stop->Lose(reason, kExitCannotBind); }};
  absl::StatusOr<std::unique_ptr<Server>> server =
      Server::Start(options, *std::move(engine), *std::move(plan), std::move(hooks));
  if (!server.ok()) return Fail(server.status(), ExitCodeOfStart(server.status()));
  LogConfiguration(options);
  const BoundAddresses& bound = (*server)->addresses();
  Say("listening on " + bound.service);
  if (!bound.metrics.empty()) Say("metrics on " + bound.metrics);
  if (!bound.health.empty()) Say("health on " + bound.health);

  const absl::Status loaded = (*server)->Load([] { return stop->stop_requested(); });
  if (const auto lost = stop->WaitForLoss(Clock::now())) DieOfLoss(**server, *lost);
  if (absl::IsCancelled(loaded)) return kExitOk;
  if (!loaded.ok()) return Fail(loaded, absl::IsInternal(loaded) ? kExitEngineLost : kExitModelInvalid);
  Say("ready");
  return RunUntilStopped(**server, *stop, options);
}

}  // namespace

void AddServeCommand(CLI::App& app, int* exit_code) {
  struct Arguments {
    ServerOptions options;
    bool check_config = false;
  };
  auto arguments = std::make_shared<Arguments>();
  CLI::App* serve = app.add_subcommand("serve", "Serve the MoE layers of checkpoints over gRPC");
  AddServerOptions(*serve, &arguments->options);
  serve->add_flag("--check-config", arguments->check_config, "Check and print the effective configuration, then exit")
      ->group("Configuration");
  serve->callback([serve, arguments, exit_code] {
    if (absl::Status status = ResolveServerOptions(*serve, arguments->options); !status.ok()) {
      *exit_code = Fail(status, kExitUsage);
    } else if (arguments->check_config) {
      for (const auto& [name, value] : arguments->options.Effective()) Say(name + " = " + value);
    } else {
      *exit_code = Serve(arguments->options);
    }
  });
}

}  // namespace expertd
