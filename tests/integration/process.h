// Child processes for tests and benchmarks: started, watched through their output, signalled and never left behind.
#pragma once

#include <sys/types.h>

#include <array>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "kernels/base/mutex.h"

namespace expertd::testing {

// How long a test waits for what must come.
inline constexpr std::chrono::seconds kPatience{60};

// Owns one child. Killed and reaped when destroyed; it also dies with the thread that started it.
class Process {
 public:
  // argv[0] is the path. The environment is this process's, without EXPERTD_ variables.
  static absl::StatusOr<std::unique_ptr<Process>> Start(const std::vector<std::string>& argv);
  ~Process();

  pid_t pid() const { return pid_; }
  void Signal(int signal) const;

  // The exit code, 128 + signal for a child that a signal ended; nothing after `timeout`.
  std::optional<int> Wait(std::chrono::milliseconds timeout);

  // The rest of the first line of stdout that starts with `prefix`, as soon as there is one; nothing when the child has
  // closed stdout or `timeout` has passed before.
  std::optional<std::string> WaitForLine(absl::string_view prefix, std::chrono::milliseconds timeout);

  // What it has written so far; complete after Wait.
  std::string out() const;
  std::string err() const;

 private:
  struct Pipe {
    int fd = -1;
    std::thread reader;
    mutable Mutex mutex;
    CondVar changed;
    std::string text ABSL_GUARDED_BY(mutex);
    bool closed ABSL_GUARDED_BY(mutex) = false;

    void Read();
    std::string Text() const;
  };

  Process() = default;

  pid_t pid_ = -1;
  std::optional<int> exit_code_;
  Pipe out_;
  Pipe err_;
};

// How a program ended that ends by itself.
struct Outcome {
  int code = -1;  // as Process::Wait has it; -1: it could not be started, or had not ended after a minute
  std::string out, err;
};

// Runs `program` with `arguments` behind it and waits for its end.
Outcome RunToEnd(std::vector<std::string> program, const std::vector<std::string>& arguments);

}  // namespace expertd::testing
