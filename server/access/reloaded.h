// A value that files hold, read again when they change.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "kernels/base/mutex.h"
#include "server/access/watched_files.h"

namespace expertd {

// Thread-safe. Who has taken the current value keeps it: a call is judged by the tokens, and a connection stands with
// the certificate, that were current when it began.
template <class T>
class Reloaded {
 public:
  using Read = std::function<absl::StatusOr<T>()>;

  // `read`'s error when the first reading fails.
  static absl::StatusOr<std::shared_ptr<Reloaded>> Open(std::vector<std::string> paths, Read read) {
    WatchedFiles files(std::move(paths));  // before they are read: a change in between is seen
    absl::StatusOr<T> first = read();
    if (!first.ok()) return first.status();
    return std::shared_ptr<Reloaded>(new Reloaded(std::move(files), std::move(read), *std::move(first)));
  }

  // Reads again when a file has changed; true: there is a new value. An error leaves the old one in use, and is
  // reported once for each change.
  absl::StatusOr<bool> Refresh() {
    MutexLock lock(mutex_);
    if (!files_.Changed()) return false;
    absl::StatusOr<T> read = read_();
    if (!read.ok()) return read.status();
    current_ = std::make_shared<const T>(*std::move(read));
    return true;
  }

  std::shared_ptr<const T> current() const {
    MutexLock lock(mutex_);
    return current_;
  }

 private:
  Reloaded(WatchedFiles files, Read read, T first)
      : read_(std::move(read)), files_(std::move(files)), current_(std::make_shared<const T>(std::move(first))) {}

  const Read read_;
  mutable Mutex mutex_;
  WatchedFiles files_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const T> current_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace expertd
