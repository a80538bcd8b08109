// Progress on stderr: a bar that rewrites its line on a terminal, a plain line every few seconds elsewhere.
#pragma once

#include <chrono>
#include <string>

namespace expertd::client {

class Progress {
 public:
  Progress();
  ~Progress();  // ends the bar's line
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // `fraction` in [0, 1]. Cheap enough to call often.
  void Show(double fraction, const std::string& text);

 private:
  const bool terminal_;
  bool open_line_ = false;
  std::chrono::steady_clock::time_point next_line_;
};

}  // namespace expertd::client
