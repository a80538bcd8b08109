// What ends a server process: signals, and the loss of the engine or the listener.
#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "kernels/base/mutex.h"
#include "server/job.h"

namespace expertd {

// Exit codes of `expertd serve`.
enum ExitCode {
  kExitOk = 0,
  kExitUsage = 2,
  kExitModelInvalid = 3,
  kExitCannotBind = 4,  // also a listener that stopped answering
  kExitDeviceInit = 5,
  kExitDrainTimedOut = 6,  // also a second signal: not everything accepted was answered
  kExitEngineLost = 7,
};

// Why a process ends that did not want to.
struct Loss {
  absl::Status reason;
  ExitCode code;
};

// Thread-safe.
class StopState {
 public:
  void RequestStop();
  // The process cannot go on: the first to say so decides. `code` is what it exits with.
  void Lose(const absl::Status& reason, ExitCode code);

  bool stop_requested() const;
  // Blocks until either has happened.
  void WaitForStop();
  // What was lost, or is before `deadline`.
  std::optional<Loss> WaitForLoss(Clock::time_point deadline);

 private:
  mutable Mutex mutex_;
  CondVar changed_;
  bool stop_requested_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Loss> loss_ ABSL_GUARDED_BY(mutex_);
};

// SIGTERM and SIGINT from now on: the first requests a stop, the second ends the process at once (kExitDrainTimedOut).
// Blocks both in the calling thread and in those it starts later, so call it before any other thread is started.
// `state` must live as long as the process.
void HandleStopSignals(StopState& state);

// Connections are files: raises the soft limit of open files to the hard one. Running out would stop a listener.
void RaiseFileLimit();

}  // namespace expertd
