#include "tests/integration/process.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace expertd::testing {
namespace {

using Clock = std::chrono::steady_clock;

std::vector<char*> Pointers(std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (std::string& text : strings) out.push_back(text.data());
  out.push_back(nullptr);
  return out;
}

std::vector<std::string> CleanEnvironment() {
  std::vector<std::string> out;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!absl::StartsWith(*entry, "EXPERTD_")) out.emplace_back(*entry);
  }
  return out;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Process>> Process::Start(const std::vector<std::string>& argv) {
  if (access(argv[0].c_str(), X_OK) != 0) return absl::NotFoundError(absl::StrCat(argv[0], ": ", strerror(errno)));
  std::vector<std::string> arguments = argv, environment = CleanEnvironment();
  const std::vector<char*> argument_pointers = Pointers(arguments), environment_pointers = Pointers(environment);
  int out[2], err[2];
  if (pipe2(out, O_CLOEXEC) != 0 || pipe2(err, O_CLOEXEC) != 0) return absl::InternalError("pipe2 failed");
  const pid_t pid = fork();
  if (pid < 0) return absl::InternalError("fork failed");
  if (pid == 0) {  // only async-signal-safe calls from here on
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    dup2(out[1], STDOUT_FILENO);
    dup2(err[1], STDERR_FILENO);
    execve(argument_pointers[0], argument_pointers.data(), environment_pointers.data());
    _exit(127);
  }
  close(out[1]);
  close(err[1]);
  std::unique_ptr<Process> process(new Process());
  process->pid_ = pid;
  process->out_.fd = out[0];
  process->err_.fd = err[0];
  for (Pipe* pipe : {&process->out_, &process->err_}) pipe->reader = std::thread([pipe] { pipe->Read(); });
  return process;
}

Process::~Process() {
  if (!exit_code_.has_value()) {
    Signal(SIGKILL);
    Wait(std::chrono::seconds(10));
  }
  for (Pipe* pipe : {&out_, &err_}) {
    if (pipe->reader.joinable()) pipe->reader.join();
  }
}

void Process::Signal(int signal) const {
  if (!exit_code_.has_value()) kill(pid_, signal);
}

std::optional<int> Process::Wait(std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  while (!exit_code_.has_value()) {
    int status = 0;
    if (waitpid(pid_, &status, WNOHANG) == pid_) {
      exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
      for (Pipe* pipe : {&out_, &err_}) pipe->reader.join();
      return exit_code_;
    }
    if (Clock::now() > deadline) return std::nullopt;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return exit_code_;
}

std::optional<std::string> Process::WaitForLine(absl::string_view prefix, std::chrono::milliseconds timeout) {
  const auto deadline = Clock::now() + timeout;
  MutexLock lock(out_.mutex);
  for (;;) {
    const std::vector<std::string> lines = absl::StrSplit(out_.text, '\n');
    for (std::size_t i = 0; i + 1 < lines.size(); ++i) {  // the last one is not finished
      if (absl::StartsWith(lines[i], prefix)) return lines[i].substr(prefix.size());
    }
    if (out_.closed || Clock::now() > deadline) return std::nullopt;
    out_.changed.WaitUntil(out_.mutex, deadline);
  }
}

std::string Process::out() const { return out_.Text(); }
std::string Process::err() const { return err_.Text(); }

void Process::Pipe::Read() {
  char buffer[4096];
  for (;;) {
    const ssize_t size = read(fd, buffer, sizeof(buffer));
    if (size < 0 && errno == EINTR) continue;
    MutexLock lock(mutex);
    if (size <= 0) {
      closed = true;
      changed.NotifyAll();
      break;
    }
    text.append(buffer, static_cast<std::size_t>(size));
    changed.NotifyAll();
  }
  close(fd);
}

std::string Process::Pipe::Text() const {
  MutexLock lock(mutex);
  return text;
}

Outcome RunToEnd(std::vector<std::string> program, const std::vector<std::string>& arguments) {
  program.insert(program.end(), arguments.begin(), arguments.end());
  const auto process = Process::Start(program);
  if (!process.ok()) return {.err = process.status().ToString()};
  const int code = (*process)->Wait(std::chrono::minutes(1)).value_or(-1);
  return {.code = code, .out = (*process)->out(), .err = (*process)->err()};
}

}  // namespace expertd::testing
