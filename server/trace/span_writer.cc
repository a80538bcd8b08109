#include "server/trace/span_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/log.h"

namespace expertd {
namespace {

// How long a span may wait, and how many make a line.
constexpr std::chrono::milliseconds kWriteEvery{200};
constexpr std::size_t kSpansPerLine = 256;

// In one write, so that lines of several processes stay whole.
bool Append(const std::string& path, const std::string& line) {
  const int fd = open(path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0640);
  if (fd < 0) return false;
  const bool written = write(fd, line.data(), line.size()) == static_cast<ssize_t>(line.size());
  return close(fd) == 0 && written;
}

}  // namespace

absl::StatusOr<std::unique_ptr<SpanWriter>> SpanWriter::Open(const std::string& path, const std::string& version) {
  if (!Append(path, "")) {
    return absl::InvalidArgumentError(absl::StrCat("--trace-file ", path, ": ", std::strerror(errno)));
  }
  return std::unique_ptr<SpanWriter>(new SpanWriter(path, version));
}

SpanWriter::SpanWriter(std::string path, std::string version)
    : path_(std::move(path)), version_(std::move(version)), thread_([this] { Run(); }) {}

SpanWriter::~SpanWriter() {
  {
    MutexLock lock(mutex_);
    stopping_ = true;
    changed_.NotifyAll();
  }
  thread_.join();
}

void SpanWriter::Record(RequestSpan span) {
  MutexLock lock(mutex_);
  if (waiting_.size() >= kMaxWaiting) {
    ++dropped_;
    return;
  }
  waiting_.push_back(std::move(span));
  if (waiting_.size() == kMaxWaiting / 2) changed_.NotifyAll();
}

void SpanWriter::Run() {
  bool last = false;
  while (!last) {
    std::vector<RequestSpan> spans;
    {
      const auto wake = std::chrono::steady_clock::now() + kWriteEvery;
      MutexLock lock(mutex_);
      while (!stopping_ && waiting_.size() < kMaxWaiting / 2 && changed_.WaitUntil(mutex_, wake)) continue;
      last = stopping_;
      spans.swap(waiting_);
    }
    for (std::size_t first = 0; first < spans.size(); first += kSpansPerLine) {
      const auto begin = spans.begin() + static_cast<std::ptrdiff_t>(first);
      const auto end = begin + static_cast<std::ptrdiff_t>(std::min(kSpansPerLine, spans.size() - first));
      Write({std::make_move_iterator(begin), std::make_move_iterator(end)});
    }
  }
}

// The file is opened anew each time: who rotates it need not tell us.
void SpanWriter::Write(const std::vector<RequestSpan>& spans) {
  if (Append(path_, EncodeSpans(spans, version_) + "\n")) return;
  const std::int64_t before = dropped_.fetch_add(static_cast<std::int64_t>(spans.size()));
  if (before == 0)
    Log(LogLevel::kWarning, "spans cannot be written", {{"path", path_}, {"reason", std::strerror(errno)}});
}

}  // namespace expertd
