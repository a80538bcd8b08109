#include "client/cpp/program/progress.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace expertd::client {
namespace {
constexpr int kWidth = 30;
constexpr std::chrono::seconds kLineEvery{5};
}  // namespace

Progress::Progress()
    : terminal_(isatty(STDERR_FILENO) == 1), next_line_(std::chrono::steady_clock::now() + kLineEvery) {}

Progress::~Progress() {
  if (open_line_) std::fputc('\n', stderr);
}

void Progress::Show(double fraction, const std::string& text) {
  fraction = std::clamp(fraction, 0.0, 1.0);
  if (terminal_) {
    const std::string bar(static_cast<std::size_t>(fraction * kWidth), '#');
    std::fprintf(stderr, "\r[%-*s] %3.0f %%  %s\033[K", kWidth, bar.c_str(), fraction * 100, text.c_str());
    open_line_ = true;
  } else if (const auto now = std::chrono::steady_clock::now(); now >= next_line_) {
    std::fprintf(stderr, "%3.0f %%  %s\n", fraction * 100, text.c_str());
    next_line_ = now + kLineEvery;
  }
}

}  // namespace expertd::client
