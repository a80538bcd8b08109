#include "server/lifecycle.h"

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <thread>

#include "server/log.h"

namespace expertd {

void StopState::RequestStop() {
  MutexLock lock(mutex_);
  stop_requested_ = true;
  changed_.NotifyAll();
}

void StopState::Lose(const absl::Status& reason, ExitCode code) {
  MutexLock lock(mutex_);
  if (!loss_) loss_ = Loss{reason, code};
  changed_.NotifyAll();
}

bool StopState::stop_requested() const {
  MutexLock lock(mutex_);
  return stop_requested_ || loss_;
}

void StopState::WaitForStop() {
  MutexLock lock(mutex_);
  while (!stop_requested_ && !loss_) changed_.Wait(mutex_);
}

std::optional<Loss> StopState::WaitForLoss(Clock::time_point deadline) {
  MutexLock lock(mutex_);
  while (!loss_ && changed_.WaitUntil(mutex_, deadline)) continue;
  return loss_;
}

void HandleStopSignals(StopState& state) {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGTERM);
  sigaddset(&signals, SIGINT);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);  // NOLINT(cert-err33-c)
  std::thread([&state, signals] {
    int signal = 0;
    sigwait(&signals, &signal);
    Log(LogLevel::kInfo, "stopping", {{"signal", static_cast<std::int64_t>(signal)}});
    state.RequestStop();
    sigwait(&signals, &signal);
    Log(LogLevel::kWarning, "stopped at once by a second signal", {{"signal", static_cast<std::int64_t>(signal)}});
    FlushLog();
    _exit(kExitDrainTimedOut);
  }).detach();
}

void RaiseFileLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  if (setrlimit(RLIMIT_NOFILE, &limit) != 0) Log(LogLevel::kWarning, "the limit of open files could not be raised");
}

}  // namespace expertd
